"""A model that is given features in place of pixels learns the same, to the bit, and holds no tower."""

from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from tiny import TINY
from tiny.rows import TinyModel, colour_rows, picture, sample
from torch import Tensor
from transformers import modeling_utils as library

from vlmtune.data.collate import WHERE, Collator
from vlmtune.data.dataset import TuneDataset
from vlmtune.data.features import encode
from vlmtune.data.features.prepare import Teller, features_of
from vlmtune.data.progress import silent
from vlmtune.data.types import Sample
from vlmtune.engine.step import forward_loss
from vlmtune.models.build import base_of, build_model, build_tower, weightless_base
from vlmtune.models.features import serve_features
from vlmtune.plan.types import RunPlan

CACHING = [name for name in TINY if name != "instructblip"]


def learned(plan: RunPlan, rows: TuneDataset, model: TinyModel) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of a step of one row, adapters filled."""
    built = build_model(plan).train()
    if rows.features:
        serve_features(base_of(built), rows.features.form)
    adapters = [parameter for parameter in built.parameters() if parameter.requires_grad]
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapters:
            parameter.normal_(std=0.05)
    batch = Collator(model.processor)([rows[index] for index in range(len(rows))])
    batch.pop(WHERE)
    loss = forward_loss(built, batch, plan)
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in adapters]


def both(model: TinyModel, samples: list[Sample], **changes) -> tuple:
    """What is learned with the tower and with features."""
    plan = replace(model.plan, **changes)
    cached = replace(plan, cache_features=True)
    teller = Teller(silent, print)
    [features] = features_of(cached, model.source, [samples], model.processor, teller)
    return tuple(
        learned(one, TuneDataset(samples, model.processor, model.family, one, of_rows), model)
        for one, of_rows in ((plan, None), (cached, features))
    )


def assert_same(plain: tuple, cached: tuple) -> None:
    assert torch.equal(plain[0], cached[0])
    assert len(plain[1]) >= 10 and any(grad is not None and grad.any() for grad in plain[1])
    for mine, theirs in zip(plain[1], cached[1], strict=True):
        assert (mine is None) == (theirs is None) and (mine is None or torch.equal(mine, theirs))


@pytest.mark.parametrize("name", CACHING)
def test_loss_and_gradients_are_the_same(name, models, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "NUMBERS_AT_ONCE", 1)
    assert_same(*both(models(name), colour_rows(tmp_path, 4)[3:]))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("qwen3_vl", {"base_dtype": "bf16"}),
        ("qwen3_vl", {"gradient_checkpointing": False}),
        ("llava", {"quant_type": None, "method": "lora"}),
        ("smolvlm", {"unquantized": ("model.vision_model", "model.connector")}),
    ],
)
def test_formats_and_other_levers_change_nothing_of_that(name, changes, models, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "NUMBERS_AT_ONCE", 1)
    assert_same(*both(models(name), colour_rows(tmp_path, 4)[3:], **changes))


@pytest.mark.parametrize("name", CACHING)
def test_batches_of_rows_and_of_images_differ_by_rounding_alone(name, models, tmp_path):
    plain, cached = both(models(name), colour_rows(tmp_path, 4)[1:])
    torch.testing.assert_close(plain[0], cached[0], rtol=1e-6, atol=1e-6)
    for mine, theirs in zip(plain[1], cached[1], strict=True):
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["gemma3", "qwen3_vl", "smolvlm"])
def test_several_images_of_a_row_are_where_they_were(name, models, tmp_path):
    first, second = picture(tmp_path, "a", (90, 40), "red"), picture(tmp_path, "b", (40, 120), "blue")
    model = models(name)
    (there, _), (cached, _) = both(model, [sample("Which?", "both", first, second)])
    (swapped, _), _ = both(model, [sample("Which?", "both", second, first)])
    torch.testing.assert_close(there, cached, rtol=1e-6, atol=1e-6)
    assert abs(there - swapped) > 1e-4


@pytest.mark.parametrize("name", CACHING)
def test_tower_and_language_model_are_halves_of_the_whole(name, models):
    model = models(name)
    cached = replace(model.plan, cache_features=True)
    whole, tower = weightless_base(model.plan), build_tower(cached)
    training = base_of(build_model(cached))
    parts = {
        number: {model.family.part_of(path) for path, _ in one.named_parameters()}
        for number, one in enumerate((tower, training))
    }
    assert parts == {0: {"vision", "projector"}, 1: {"text"} | ({"head"} - shared_head(model))}
    sizes = [sum(p.numel() for path, p in one.named_parameters() if ".lora_" not in path) for one in (tower, training)]
    assert sum(sizes) == sum(p.numel() for p in whole.parameters()) and min(sizes) > 0
    assert not any(p.is_meta for p in (*tower.parameters(), *training.parameters()))


def shared_head(model: TinyModel) -> set[str]:
    return {"head"} if model.source.facts("m").shares_embedding else set()


class Watched:
    """A safetensors file, or a tensor of it, that notes which tensors are read."""

    def __init__(self, inner, read: list[str], name: str = "") -> None:
        self.inner, self.read, self.name = inner, read, name

    def __enter__(self) -> "Watched":
        return self

    def __exit__(self, *args) -> None:
        return None

    def __getattr__(self, name: str):
        return getattr(self.inner, name)

    def __getitem__(self, index):
        self.read.append(self.name)
        return self.inner[index]

    def get_slice(self, name: str) -> "Watched":
        return Watched(self.inner.get_slice(name), self.read, name)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_nothing_of_the_other_part_is_read(name, models, monkeypatch):
    model, read = models(name), []
    monkeypatch.setattr(library, "safe_open", lambda *args, **kwargs: Watched(safe_open(*args, **kwargs), read))
    plan = replace(model.plan, cache_features=True)
    build_tower(plan)
    seen = set(read)
    read.clear()
    build_model(plan)
    assert seen and read and not seen & set(read)
    assert all("vis" in name or "projector" in name for name in seen)


@pytest.mark.parametrize("cached", [False, True])
def test_a_tower_attends_in_one_call_wherever_it_is(cached, models):
    model = models("qwen2_5_vl")
    plan = replace(model.plan, varlen_attention=True, pack_tokens=512, cache_features=cached)
    tower = build_tower(plan).get_submodule(model.family.vision)
    assert tower.config._attn_implementation == "flash_of_torch"
    assert base_of(build_model(plan)).get_submodule(model.family.text).config._attn_implementation == "packs"
