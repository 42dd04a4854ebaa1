"""Answers without weights take what answers with weights take, and are counted beside the training."""

from dataclasses import asdict, replace

import pytest
import torch
from tiny import TINY
from tiny.rows import colour_rows

from vlmtune.data.collate import WHERE, collate
from vlmtune.data.dataset import TuneDataset
from vlmtune.data.run_data import MeasuredRows
from vlmtune.engine import evaluate
from vlmtune.engine.answers.held_out import asked
from vlmtune.engine.answers.together import Together
from vlmtune.engine.evaluate import answers_to
from vlmtune.engine.tuned import Tuned
from vlmtune.estimate import answers
from vlmtune.estimate.allocator.peaks import phases_of
from vlmtune.estimate.answers import HELD_OUT, HeldOutRows, Question, simulate_answer
from vlmtune.estimate.given_rows import GivenRows
from vlmtune.estimate.run import estimate_largest, estimate_plan
from vlmtune.estimate.simulate.device import as_on_device
from vlmtune.estimate.simulate.record import Recorder, no_hidden
from vlmtune.estimate.simulate.simulation import add_residents, recorder_of
from vlmtune.hardware.cards import Target, find_card
from vlmtune.models.build import build_model
from vlmtune.runs.folder import RunFolder

TARGET = Target(find_card("8gb"), 8 * 2**30, True)
NEW_TOKENS = 7


def recorded(plan, weights: str) -> tuple[torch.nn.Module, Recorder]:
    model = build_model(plan, weights=weights).train()
    recorder = recorder_of(model, plan, no_hidden)
    recorder.log.begin("load")
    add_residents(model, plan, recorder)
    return model, recorder


@pytest.mark.parametrize(("name", "rows_at_once"), [*((name, 3) for name in TINY), ("qwen3_vl", 1)])
def test_answers_in_training_take_what_is_simulated(name, rows_at_once, models, tmp_path, monkeypatch):
    tiny = models(name)
    rows = TuneDataset(colour_rows(tmp_path), tiny.processor, tiny.family, tiny.plan)
    longest = max(rows, key=lambda row: row.labels.shape[1])
    model, recorder = recorded(tiny.plan, "none")
    with as_on_device(tiny.plan):
        HeldOutRows(longest, NEW_TOKENS, rows_at_once)._record(rows_at_once, model, tiny.plan, recorder)
    simulated = phases_of(recorder.log)[HELD_OUT]
    model, recorder = recorded(tiny.plan, "checkpoint")
    monkeypatch.setattr(evaluate, "end_token_ids", lambda *args: [10**6])
    tuned = Tuned(tiny.plan, model, tiny.processor)
    with recorder, asked(model, tiny.plan, "cpu"):
        recorder.log.begin(HELD_OUT)
        prompts = [longest] * rows_at_once
        list(answers_to(prompts, tuned, NEW_TOKENS, Together(rows_at_once)))
    real = phases_of(recorder.log)[HELD_OUT]
    base = real.allocated_at_end_bytes
    taken, expected = real.peak_allocated_bytes - base, simulated.peak_allocated_bytes - base
    assert 0.99 * taken <= expected <= 1.06 * taken, "rows that differ have a mask; these are of one length"
    assert simulated.allocated_at_end_bytes == pytest.approx(base, abs=2048)


@pytest.fixture
def estimated(models, tmp_path):
    """A function that returns the estimate of a run that answers so many held-out rows, of rows or of the largest."""
    tiny = models("qwen3_vl")
    samples = colour_rows(tmp_path, 12)
    rows = GivenRows(MeasuredRows(samples[:4]), MeasuredRows(samples[4:]))

    def make(generate_rows: int, *, given: bool = True, **changes):
        plan = replace(tiny.plan, device="cuda", generate_rows=generate_rows, **changes)
        return (
            estimate_plan(plan, tiny.source, rows, TARGET, fast=True)
            if given
            else estimate_largest(plan, tiny.source, TARGET, fast=True)
        )

    return make


@pytest.mark.parametrize("given", [True, False])
def test_answers_are_a_phase_beside_the_training(given, estimated, tmp_path):
    without, several = estimated(0, given=given), estimated(8, given=given)
    assert without.answers_at_once is None and HELD_OUT not in peaks(without)
    assert 1 <= several.answers_at_once <= 8
    steps = max(peak for name, peak in peaks(without).items() if name != "load")
    assert several.answers_at_once == 1 or peaks(several)[HELD_OUT] <= steps
    assert several.peak_allocated_bytes == max(without.peak_allocated_bytes, peaks(several)[HELD_OUT])
    assert several.flops_per_row == without.flops_per_row
    folder = RunFolder.create(tmp_path / "run")
    folder.write_estimate(asdict(several))
    assert folder.read_estimate().answers_at_once == several.answers_at_once, "where training reads it"


def test_as_many_are_answered_at_once_as_steps_leave_room_for(estimated):
    at_once = [estimated(8, batch_size=size).answers_at_once for size in (1, 4)]
    assert 1 <= at_once[0] < at_once[1] <= 8
    assert estimated(2, batch_size=4).answers_at_once == 2, "there are no more"


def test_a_row_that_takes_more_than_the_steps_is_the_peak(estimated, monkeypatch):
    monkeypatch.setattr(answers, "cache_token_bytes", lambda model: 2**20)
    report = estimated(8)
    assert report.answers_at_once == 1 and report.peak_at.phase == HELD_OUT
    assert report.peak_allocated_bytes > 1.2 * estimated(0).peak_allocated_bytes


def peaks(report) -> dict[str, int]:
    return {phase.name: phase.peak_allocated_bytes for phase in report.phases}


def test_an_answer_takes_what_generating_it_takes(models, tmp_path):
    """The prompt and every token are phases; a token adds its keys and values to every layer."""
    model = models("qwen3_vl")
    plan, row = model.plan, TuneDataset(colour_rows(tmp_path, 1), model.processor, model.family, model.plan)[0]
    prompt = {key: value for key, value in collate([row], 0).items() if key not in (WHERE, "labels")}
    phases = phases_of(simulate_answer(plan, Question(prompt), no_hidden, num_tokens=3))
    assert list(phases) == ["load", "prompt", "token 1", "token 2", "token 3"]
    text = build_model(plan, weights="none").get_base_model().config.text_config
    numbers = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    grown = phases["token 3"].allocated_at_end_bytes - phases["token 2"].allocated_at_end_bytes
    assert grown == pytest.approx(numbers * 4, abs=text.num_hidden_layers * 2 * 512)
    assert phases["prompt"].peak_allocated_bytes > phases["load"].allocated_at_end_bytes
