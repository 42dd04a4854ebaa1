"""Rows that carry features are the rows that carry pixels, but for these; no picture is decoded for them."""

from dataclasses import replace

import pytest
import torch
from tiny import TINY
from tiny.rows import TinyModel, picture, sample

from vlmtune.data import dataset
from vlmtune.data.collate import Collator
from vlmtune.data.dataset import TuneDataset
from vlmtune.data.types import Sample
from vlmtune.models.features import FEATURES, PIXELS, is_of_pixels

CACHING = [name for name in TINY if name != "instructblip"]


def pair(model: TinyModel, rows: list[Sample], features, **changes) -> tuple[TuneDataset, TuneDataset]:
    """The rows with pixels and the rows with features."""
    plan = replace(model.plan, **changes)
    return tuple(TuneDataset(rows, model.processor, model.family, plan, one) for one in (None, features))


def same_but_for_pixels(plain, cached) -> None:
    assert torch.equal(plain.labels, cached.labels) and torch.equal(plain.is_image, cached.is_image)
    kept = {key: value for key, value in plain.tensors.items() if not is_of_pixels(key, value)}
    assert cached.tensors.keys() - {FEATURES} == kept.keys() and "input_ids" in kept
    assert [key for key in kept if not torch.equal(kept[key], cached.tensors[key])] == []


@pytest.mark.parametrize("name", CACHING)
def test_texts_labels_and_places_are_the_same(name, models, rows, featured, monkeypatch):
    model = models(name)
    plain, cached = pair(model, rows, featured(model, rows))
    expected = [plain[index] for index in range(len(rows))]
    monkeypatch.setattr(dataset, "open_image", None)  # nothing is opened
    for _ in range(2):
        for index, row in enumerate(expected):
            same_but_for_pixels(row, cached[index])
            assert cached[index].tensors[FEATURES].shape[-1] == model.source.facts("m").hidden_size


@pytest.mark.parametrize("name", ["qwen3_vl", "smolvlm", "gemma3", "llava", "qwen"])
def test_several_images_and_none_in_a_row(name, models, tmp_path, featured):
    model = models(name)
    first, second = picture(tmp_path, "a", (90, 40), "red"), picture(tmp_path, "b", (40, 120), "blue")
    rows = [sample("Which?", "both", first, second), sample("None?", "none"), sample("Back?", "yes", second, first)]
    features = featured(model, rows)
    plain, cached = pair(model, rows, features)
    for index in (0, 2):
        same_but_for_pixels(plain[index], cached[index])
    assert FEATURES not in cached[1].tensors
    one, other = features.of_row(0), features.of_row(2)
    of_first, of_second = (features.store[digest] for digest in features.images.digests)
    assert torch.equal(one, torch.cat((of_first, of_second), dim=1)) and not torch.equal(one, other)
    assert torch.equal(other, torch.cat((of_second, of_first), dim=1))
    collator = Collator(model.processor)
    batch = collator([cached[index] for index in range(3)])
    assert batch[PIXELS].shape[1] == one.shape[1] + other.shape[1] and FEATURES not in batch


def test_a_row_is_cut_as_it_is_with_pixels(models, rows, featured):
    model = models("qwen3_vl")
    row = pair(model, rows, None)[0][2]
    limit = row.num_text_tokens - 3
    plain, cached = pair(model, rows, featured(model, rows), truncation="cut", max_length=limit)
    same_but_for_pixels(plain[2], cached[2])
    assert cached[2].num_cut_tokens == 3


def test_a_prompt_carries_features_where_the_model_looks_for_pixels(models, rows, featured):
    model = models("qwen2_5_vl")
    features = featured(model, rows)
    plain, cached = pair(model, rows, features)
    collator = Collator(model.processor)
    prompt, expected = (collator.prompts([rows.prompt(1)]) for rows in (cached, plain))
    assert torch.equal(prompt[PIXELS], features.of_row(1)) and prompt.keys() == expected.keys()
    assert torch.equal(prompt["input_ids"], expected["input_ids"])
