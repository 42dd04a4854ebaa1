"""Rows made up from the catalogue's configs alone, by each model's own processor."""

import dataclasses
from pathlib import Path

import pytest

from vlmtune.catalog import find_entry
from vlmtune.config.schema import TrainingConfig
from vlmtune.data.encode import IGNORED, Encoded
from vlmtune.estimate.simulate.inputs import TEXT_TOKEN, largest_row
from vlmtune.hub.source import open_model
from vlmtune.models.build import family_of
from vlmtune.plan.decide import make_plan
from vlmtune.plan.types import Device

CARD = Device("cuda", "a card", bf16=True)
# model, image size, tokens that hold the image, of them with the image's own id, that id
ROWS = [
    ("google/gemma-3-4b-it", None, 260, 256, 262144),
    ("google/gemma-4-E2B-it", None, 258, 256, 258880),
    ("HuggingFaceTB/SmolVLM-256M-Instruct", 336, 67, 64, 49190),
    ("LiquidAI/LFM2-VL-450M", 336, 102, 100, 396),
    ("llava-hf/llava-1.5-7b-hf", 336, 576, 576, 32000),
    ("mistral-community/pixtral-12b", 336, 462, 441, 10),
    ("OpenGVLab/InternVL3-1B-hf", 336, 258, 256, 151667),
    ("Qwen/Qwen3.5-0.8B", 336, 100, 100, 248056),
    ("Qwen/Qwen-VL-Chat", 336, 256, 256, 151859),
    ("Salesforce/instructblip-vicuna-7b", 336, 32, 32, 32001),
]


def row_of(model_id: str, folder: Path, max_length: int = 300, image_size: int | None = None) -> Encoded:
    source = open_model(model_id, None, folder, offline_catalog=True)
    data = {"train_path": "rows.jsonl", "max_length": max_length, "image_size": image_size}
    config = TrainingConfig.model_validate({"model": {"name": model_id}, "data": data})
    plan = make_plan(config, source, CARD)
    plan = dataclasses.replace(plan, model=str(find_entry(model_id).folder))
    return largest_row(plan, source, family_of(plan))


@pytest.mark.parametrize(("model_id", "image_size", "image", "features", "image_id"), ROWS)
def test_largest_row(model_id, image_size, image, features, image_id, tmp_path):
    row = row_of(model_id, tmp_path, image_size=image_size)
    ids = row.tensors["input_ids"]
    assert (row.num_text_tokens, row.num_image_tokens) == (300, image)
    assert int((ids == image_id).sum()) == features
    assert int((row.labels != IGNORED).sum()) == 150
    assert set(ids[row.labels != IGNORED].tolist()) == {TEXT_TOKEN}


def test_what_a_q_former_cannot_read_of_the_question_becomes_answer(tmp_path):
    row = row_of("Salesforce/instructblip-vicuna-7b", tmp_path, max_length=2048)
    assert row.num_text_tokens == 2048
    assert row.tensors["qformer_input_ids"].shape[1] == 512
    assert int((row.labels != IGNORED).sum()) > 1500
