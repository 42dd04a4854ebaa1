"""Rows answered at once are answered as one by one: every family, prompts of different lengths and pictures."""

from pathlib import Path

import pytest
import torch
from tiny import TINY
from tiny.rows import TinyModel, built, picture, sample

from vlmtune.contract import tiny_plan
from vlmtune.data.dataset import TuneDataset
from vlmtune.engine.answers.together import Together
from vlmtune.engine.evaluate import answers_to
from vlmtune.engine.tuned import Tuned
from vlmtune.families import find_family
from vlmtune.hub.source import open_model
from vlmtune.models.processor import load_processor
from vlmtune.models.tiny import tiny_model

TRIED = (
    *("aya_vision", "cohere2_vision", "deepseek_vl", "exaone4_5", "gemma4", "glm46v", "glm4v", "glm4v_moe"),
    *("glm_ocr", "hyperclovax_vision_v2", "idefics2", "internvl", "janus", "lfm2_vl", "lighton_ocr", "llava_next"),
    *("llava_next_video", "llava_onevision", "mistral3", "paddleocr_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl_moe"),
    *("video_llama_3", "video_llava", "vipllava"),
)
"""Model types without a family of their own, with transformers 5.23."""
ONE_PICTURE = ("glm46v", "glm4v", "glm4v_moe", "glm_ocr", "paddleocr_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl_moe")
"""Tiny ones that take no row with two pictures."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    shapes = {"red": (90, 60), "blue": (200, 60), "lime": (60, 150)}
    return [picture(folder, colour, size_px, colour) for colour, size_px in shapes.items()]


def check(plan, family, processor, samples, monkeypatch) -> None:
    monkeypatch.setattr("vlmtune.engine.evaluate.end_token_ids", lambda *args: [-1])  # random models end at once
    monkeypatch.setattr("vlmtune.engine.evaluate.written_of", lambda ids, *args: tuple(ids))
    rows = TuneDataset(samples, processor, family, plan)
    model = built(plan).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(5)  # a head that is the embedding would repeat the last token of the prompt
    tuned = Tuned(plan, model, processor)
    alone = list(answers_to(rows.prompts(), tuned, 12, Together(1)))
    asked = []
    together = list(answers_to(rows.prompts(), tuned, 12, Together(len(rows)), asked.append))
    assert asked == [len(rows)]
    assert together == alone
    assert len(set(alone)) > 1, "answers that are all the same show nothing"


def rows_of(pictures: list, family) -> list:
    questions = ("What is this?", "Is it blue, or is it red? " * 4, "And?")
    samples = [sample(question, "red", image) for question, image in zip(questions, pictures, strict=True)]
    if not family.needs_image:
        samples.insert(1, sample("No picture at all", "none"))
    if not family.one_answer:
        samples.append(sample("Two", "two", pictures[0], pictures[2]))
    return samples


@pytest.mark.parametrize("name", sorted(TINY))
def test_every_family(name, pictures, tmp_path, monkeypatch):
    tiny = TinyModel(name, tmp_path)
    check(tiny.plan, tiny.family, tiny.processor, rows_of(pictures, tiny.family), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TRIED)
def test_other_model_types(kind, pictures, tmp_path, monkeypatch):
    plan = tiny_plan(tiny_model({"model_type": kind}, {}, tmp_path / "model"))
    family, processor = find_family(open_model(plan.model, None, Path("/")).config, kind), load_processor(plan)
    samples = rows_of(pictures, family)[: None if kind not in ONE_PICTURE else 4]
    check(plan, family, processor, samples, monkeypatch)
