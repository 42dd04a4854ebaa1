"""Qwen-VL-Chat is planned and estimated from the catalogue: no hub, no tokenizer, no weights."""

from pathlib import Path

import pytest

from vlmtune.config.schema import TrainingConfig
from vlmtune.data.encode import IGNORED
from vlmtune.estimate.simulate.inputs import largest_row
from vlmtune.families.qwen_vl import FAMILY
from vlmtune.hub.source import open_model
from vlmtune.plan.decide import make_plan
from vlmtune.plan.types import Device

GPU = Device("cuda", "GPU", bf16=True)


@pytest.fixture
def source():
    return open_model("Qwen/Qwen-VL-Chat", None, Path("/"), offline_catalog=True)


def planned(source, image_size):
    config = {"model": {"name": "Qwen/Qwen-VL-Chat"}, "data": {"train_path": "rows.jsonl", "max_length": 512}}
    config["data"]["image_size"] = image_size
    return make_plan(TrainingConfig.model_validate(config), source, GPU)


def test_the_plan(source):
    plan = planned(source, 336)
    assert plan.family == "qwen_vl" and plan.attention == "sdpa" and plan.unquantized == ("lm_head",)
    said = {choice.key: choice.reason for choice in plan.choices}
    assert said["data.image_size"] == "has no effect: every image becomes 448×448 px"
    assert "data.image_size" not in {choice.key for choice in planned(source, 448).choices}


def test_the_largest_row(source):
    row = largest_row(planned(source, 336), source, FAMILY)
    assert (row.num_text_tokens, row.num_image_tokens) == (512, 256)
    assert set(row.tensors) == {"input_ids", "attention_mask", "pixel_values"}
    assert row.tensors["pixel_values"].shape == (1, 3, 448, 448)
    slots = row.tensors["input_ids"] == 151_859
    assert slots.sum() == 256 and (slots[0] == row.is_image).all()
    assert (row.labels != IGNORED).sum() == 256


@pytest.mark.parametrize("size_px", [(1, 1), (4000, 300), (448, 448)])
def test_every_image_takes_the_same(source, size_px):
    assert FAMILY.image_tokens(source.config, source.preprocessor, *size_px) == 256
