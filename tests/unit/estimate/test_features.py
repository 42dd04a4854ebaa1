"""What encoding takes before training is what it takes with weights, and rows carry features of the right size."""

from dataclasses import replace

import pytest
import torch
from tiny.rows import colour_rows

from vlmtune.data.collate import join_images
from vlmtune.data.dataset import TuneDataset
from vlmtune.data.features.encode import NUMBERS_AT_ONCE, Pixels
from vlmtune.data.features.prepare import Teller, features_of
from vlmtune.data.features.rows import image_tensors
from vlmtune.data.progress import silent
from vlmtune.data.run_data import MeasuredRows
from vlmtune.estimate.features import Encoding, WeightlessTower, rows_in_training
from vlmtune.estimate.given_rows import GivenRows
from vlmtune.estimate.run import estimate_largest, estimate_plan
from vlmtune.estimate.simulate.record import Recorder, no_hidden
from vlmtune.estimate.simulate.simulation import add_residents
from vlmtune.hardware.cards import Target, budget_bytes, find_card
from vlmtune.models.build import build_tower
from vlmtune.models.features import FEATURES, encode_images

CARD = find_card("8gb")
TARGET = Target(CARD, budget_bytes(CARD, "linux"), expandable_segments=True)
NAMES = ["llava", "qwen2_5_vl", "qwen3_vl", "smolvlm", "gemma3", "qwen"]


@pytest.fixture
def case(models, tmp_path):
    """A function that returns a model, its plan with cached features, and rows with pixels."""

    def made(name: str) -> tuple:
        model = models(name)
        plan = replace(model.plan, cache_features=True)
        return model, plan, TuneDataset(colour_rows(tmp_path, 3), model.processor, model.family, plan)

    return made


@pytest.mark.parametrize("name", NAMES)
def test_rows_carry_features_of_the_size_and_form_that_training_has(name, case):
    model, plan, rows = case(name)
    served, tower = rows_in_training(rows, plan)
    [features] = features_of(plan, model.source, [rows.samples], model.processor, Teller(silent, print))
    real = TuneDataset(rows.samples, model.processor, model.family, plan, features)
    for index in range(len(rows)):
        estimated, trained = served[index].tensors, real[index].tensors
        assert estimated.keys() == trained.keys()
        assert estimated[FEATURES].is_meta
        assert estimated[FEATURES].shape == trained[FEATURES].shape
        assert estimated[FEATURES].dtype == trained[FEATURES].dtype
    assert tower.form == features.form


def test_rows_stay_as_they_are_without_a_cache(case):
    _, plan, rows = case("llava")
    assert rows_in_training(rows, replace(plan, cache_features=False)) == (rows, None)


@pytest.mark.parametrize("name", NAMES)
def test_encoding_takes_what_it_takes_with_weights(name, case):
    _, plan, rows = case(name)
    encoding = Encoding(WeightlessTower(plan), rows[2], num_rows=3)
    simulated = sizes(encoding.log(no_hidden), "encoding")
    recorder, tower, batch = Recorder(), build_tower(plan), encoding.batch
    add_residents(tower, plan, recorder)
    recorder.log.begin("encoding")
    with recorder:
        for _ in range(2):
            inputs = {key: value.clone() for key, value in batch.items()}
            encode_images(tower, inputs)
    recorder.stop()
    assert simulated == sizes(recorder.log, "encoding") and len(simulated) > 50


def sizes(log, phase: str) -> list[int]:
    """Bytes taken from a phase on, of more than one block; below zero: given back."""
    start = dict(log.phases)[phase]
    taken = {handle: num_bytes for handle, num_bytes in log.events if handle > 0} | {0: 0}
    return [
        taken[abs(handle)] * (1 if handle > 0 else -1) for handle, _ in log.events[start:] if taken[abs(handle)] > 512
    ]


def test_a_batch_is_what_the_tower_is_given_at_once(case):
    _, plan, rows = case("gemma3")
    images = image_tensors(rows[0].tensors, rows[0].labels.shape[1])
    most = NUMBERS_AT_ONCE // Pixels("", images, 0).num_numbers
    for num_rows, expected in ((3, 3), (10**6, most)):
        batch = Encoding(WeightlessTower(plan), rows[0], num_rows).batch
        assert batch["pixel_values"].shape[0] == expected
        assert torch.equal(batch["pixel_values"], join_images("pixel_values", [images] * expected))


def test_the_tower_leaves_the_card_and_encoding_must_fit(models, tmp_path):
    model = models("qwen3_vl")
    plans = [replace(model.plan, device="cuda", cache_features=cached) for cached in (False, True)]
    rows = GivenRows(MeasuredRows(colour_rows(tmp_path, 3)))
    for estimate in (
        lambda plan: estimate_largest(plan, model.source, TARGET),
        lambda plan: estimate_plan(plan, model.source, rows, TARGET),
    ):
        plain, cached = map(estimate, plans)
        assert not any("vision" in share.name or "projector" in share.name for share in cached.breakdown)
        assert parts_of(plain)["load"] - parts_of(cached)["load"] > 0
        assert parts_of(plain)["answering"] > parts_of(cached)["answering"]
        assert plain.encoding_reserved_bytes == 0 < cached.encoding_reserved_bytes
        assert cached.most_bytes == max(cached.peak_reserved_bytes, cached.encoding_reserved_bytes)
    scant = replace(TARGET, budget_bytes=cached.most_bytes - 1)
    assert cached.fits and not estimate_plan(plans[1], model.source, rows, scant).fits


def parts_of(report) -> dict[str, int]:
    return {phase.name: phase.allocated_at_end_bytes for phase in report.phases}
