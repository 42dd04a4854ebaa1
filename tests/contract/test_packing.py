"""Rows in a pack learn what they learn one by one: loss and gradients, every family, whatever rows meet in a pack."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import TINY
from tiny.rows import TinyModel, picture, sample
from tiny.varlen import VarlenKernel
from transformers.models.gemma4.modeling_gemma4 import Gemma4AudioModel

from vlmtune.contract import tiny_plan
from vlmtune.data.batches.packs import packed
from vlmtune.data.collate import WHERE, Collator
from vlmtune.data.dataset import TuneDataset
from vlmtune.engine.step import IGNORED, forward_loss
from vlmtune.families import find_family
from vlmtune.families.generic import PACKABLE
from vlmtune.hub.source import open_model
from vlmtune.models.attention import varlen
from vlmtune.models.build import base_of, build_model
from vlmtune.models.processor import load_processor
from vlmtune.models.tiny import tiny_model

ONE_BY_ONE = sorted(set(TINY) - {"instructblip"})
TRIED = ("internvl", "mistral3")
WITHOUT_TEXT_ONLY = ("got_ocr2", "internvl", "lighton_ocr")
"""Tiny processors that take no row without an image."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, shapes = tmp_path_factory.mktemp("pictures"), {"red": (90, 60), "blue": (200, 60), "lime": (60, 150)}
    return [picture(folder, colour, size_px, colour) for colour, size_px in shapes.items()]


def rows_of(seed: int, pictures: list, family, text_only: bool = True) -> list:
    """Return rows of very different length: one word to many, one picture, several, none where the family allows it."""
    rng = random.Random(seed)
    rows = [
        sample("What is this?", "red", pictures[0]),
        sample("Is it blue? " + "yes or no " * rng.randint(8, 14), "yes " * rng.randint(10, 20), pictures[1]),
        sample("And?", "surely lime", pictures[2]),
    ]
    if not family.one_answer:
        rows.append(sample("Two", "one is red, one is lime", pictures[0], pictures[2]))
    if not family.needs_image and text_only:
        rows.append(sample("No picture " * rng.randint(1, 5), "none at all"))
    rng.shuffle(rows)
    return rows


def learned(model, batches, plan, num_items) -> tuple[float, list[torch.Tensor]]:
    """Return loss and gradients of a step."""
    model.zero_grad()
    loss = 0.0
    for batch in batches:
        batch.pop(WHERE)
        part = forward_loss(model, batch, plan, num_items)
        part.backward()
        loss += part.item()
    return loss, [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def check(plan, family, processor, samples) -> None:
    rows = list(TuneDataset(samples, processor, family, plan))
    model = build_model(plan).train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.05)
    num_items = sum(int((row.labels[:, 1:] != IGNORED).sum()) for row in rows)
    loss, grads = learned(model, [Collator(processor)([row]) for row in rows], plan, num_items)
    for step in (1, 256):  # filled up, as CUDA graphs want it
        again, packed_grads = learned(model, [packed(rows, step)], plan, num_items)
        assert again == pytest.approx(loss, rel=1e-6)
        assert len(grads) == len(packed_grads) >= 10
        difference = sum((mine - other).square().sum() for mine, other in zip(grads, packed_grads, strict=True)).sqrt()
        assert difference / sum(grad.square().sum() for grad in grads).sqrt() < 3e-6


@pytest.fixture(scope="module", params=ONE_BY_ONE)
def tiny(request, tmp_path_factory) -> TinyModel:
    return TinyModel(request.param, tmp_path_factory.mktemp("tiny"))


def test_every_family(tiny, pictures):
    check(tiny.plan, tiny.family, tiny.processor, rows_of(0, pictures, tiny.family))


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in TRIED else pytest.mark.slow) for kind in PACKABLE]
)
def test_other_model_types(kind, pictures, tmp_path):
    plan = tiny_plan(tiny_model({"model_type": kind}, {}, tmp_path / "model"))
    family, processor = find_family(open_model(plan.model, None, Path("/")).config, kind), load_processor(plan)
    check(plan, family, processor, rows_of(0, pictures, family, kind not in WITHOUT_TEXT_ONLY))


@pytest.mark.parametrize("kind", ["llava", "gemma3", "qwen2_5_vl"])
def test_in_one_attention_call(kind, models, pictures, monkeypatch):
    """Where a mask says more than causal, the kernel is not called for the text."""
    kernel, model = VarlenKernel(monkeypatch), models(kind)
    plan = replace(model.plan, varlen_attention=True, pack_tokens=2048)
    check(plan, model.family, model.processor, rows_of(0, pictures, model.family))
    assert (varlen.CAUSAL in kernel.windows) == (kind != "gemma3")
    assert (varlen.BOTH_WAYS in kernel.windows) == model.family.tower_loops
    assert len(kernel.asked) == kernel.windows.count(varlen.CAUSAL), "towers know it: asking would make the card wait"


@pytest.mark.parametrize("most_head_size", [16, 8])
def test_layers_that_share_keys_slice_what_stands_for_a_mask_and_wide_heads_have_a_real_one(
    most_head_size, pictures, monkeypatch, tmp_path
):
    kernel = VarlenKernel(monkeypatch)
    monkeypatch.setattr(varlen, "MOST_HEAD_SIZE", most_head_size)
    text = {
        "num_hidden_layers": 2,
        "layer_types": ["full_attention"] * 2,
        "num_kv_shared_layers": 1,
        "global_head_dim": 16,
    }
    config = {"model_type": "gemma4", "text_config": text}
    plan = replace(tiny_plan(tiny_model(config, {}, tmp_path / "model")), varlen_attention=True, pack_tokens=2048)
    family, processor = find_family(open_model(plan.model, None, Path("/")).config, "gemma4"), load_processor(plan)
    check(plan, family, processor, rows_of(0, pictures, family))
    assert (varlen.CAUSAL in kernel.windows) == (most_head_size == 16)


def test_the_rest_attends_as_ever_beside_a_part_without_sdpa(pictures, monkeypatch, tmp_path):
    """Gemma 4 E's audio tower has none from 5.23 on."""
    monkeypatch.setattr(Gemma4AudioModel, "_supports_sdpa", False)
    kernel = VarlenKernel(monkeypatch)
    text = {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2, "global_head_dim": 16}
    config = {"model_type": "gemma4", "text_config": text, "audio_config": {"use_clipped_linears": False}}
    plan = tiny_plan(tiny_model(config, {}, tmp_path / "model"))
    family, processor = find_family(open_model(plan.model, None, Path("/")).config, "gemma4"), load_processor(plan)
    base = base_of(build_model(plan))
    parts = {name: base.get_submodule(name) for name in (family.text, family.vision, *family.eager)}
    attending = {name: part.config._attn_implementation for name, part in parts.items()}
    assert attending == {family.text: "sdpa", family.vision: "sdpa", "model.audio_tower": "eager"}
    for varlen_attention in (False, True):
        kernel.windows.clear()
        packs = replace(plan, varlen_attention=varlen_attention, pack_tokens=2048)
        check(packs, family, processor, rows_of(0, pictures, family))
        assert (varlen.CAUSAL in kernel.windows) == varlen_attention
