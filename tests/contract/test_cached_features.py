"""Architectures without a family of their own learn from features what they learn with their tower, to the bit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny.rows import colour_rows

from vlmtune.contract import tiny_plan
from vlmtune.data.collate import WHERE, Collator
from vlmtune.data.dataset import TuneDataset
from vlmtune.data.features import encode
from vlmtune.data.features.prepare import Teller, features_of
from vlmtune.data.progress import silent
from vlmtune.engine.step import forward_loss
from vlmtune.families import find_family
from vlmtune.hub.source import open_model
from vlmtune.models.build import base_of, build_model
from vlmtune.models.features import serve_features
from vlmtune.models.processor import load_processor
from vlmtune.models.tiny import tiny_model


@pytest.mark.parametrize("kind", ["gemma4", "internvl", "llava_next", "lfm2_vl", "minicpmv4_6", "mistral3", "qwen3_5"])
def test_loss_and_gradients_are_the_same(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "NUMBERS_AT_ONCE", 1)
    plan = tiny_plan(tiny_model({"model_type": kind}, {}, tmp_path / "model"))
    source, processor = open_model(plan.model, None, Path("/")), load_processor(plan)
    family, rows = find_family(source.config, kind), colour_rows(tmp_path, 2)[1:]
    cached = replace(plan, cache_features=True)
    [features] = features_of(cached, source, [rows], processor, Teller(silent, print))
    found = []
    for one, given in ((plan, None), (cached, features)):
        model = build_model(one).train()
        if given:
            serve_features(base_of(model), given.form)
        batch = Collator(processor)([TuneDataset(rows, processor, family, one, given)[0]])
        batch.pop(WHERE)
        loss = forward_loss(model, batch, one)
        loss.backward()
        found.append((loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]))
    (loss, grads), (again, grads_again) = found
    assert torch.equal(loss, again) and len(grads) >= 10
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(grads, grads_again, strict=True))


def test_images_of_sizes_that_cannot_be_joined_are_encoded_in_batches_of_their_own(tmp_path):
    plan = replace(tiny_plan(tiny_model({"model_type": "mistral3"}, {}, tmp_path / "model")), cache_features=True)
    source, processor = open_model(plan.model, None, Path("/")), load_processor(plan)
    rows = colour_rows(tmp_path, 3)
    [features] = features_of(plan, source, [rows], processor, Teller(silent, print))
    shapes = [features.of_row(row).shape for row in range(3)]
    assert len(set(shapes)) == 3


def test_a_tower_that_the_library_asks_for_no_features_is_named():
    family = find_family({"model_type": "mllama"}, "tiny")
    assert family.not_cacheable == "the library has no get_image_features for them"
