"""Rows answered at once are answered as one by one: every family, prompts of different lengths and pictures."""

import pytest
import torch
from tiny import TINY
from tiny.rows import TinyModel, built, picture, sample

from vlmtune.data.dataset import TuneDataset
from vlmtune.engine.answers.together import Together
from vlmtune.engine.evaluate import answers_to
from vlmtune.engine.tuned import Tuned


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    shapes = {"red": (90, 60), "blue": (200, 60), "lime": (60, 150)}
    return [picture(folder, colour, size_px, colour) for colour, size_px in shapes.items()]


@pytest.mark.parametrize("name", sorted(TINY))
def test_they_are_the_same_answers(name, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("vlmtune.engine.evaluate.end_token_ids", lambda *args: [-1])  # random models end at once
    monkeypatch.setattr("vlmtune.engine.evaluate._written", lambda ids, *args: tuple(ids))
    tiny = TinyModel(name, tmp_path)
    questions = ("What is this?", "Is it blue, or is it red? " * 4, "And?")
    samples = [sample(question, "red", image) for question, image in zip(questions, pictures, strict=True)]
    if not tiny.family.needs_image:
        samples.insert(1, sample("No picture at all", "none"))
    if not tiny.family.one_answer:
        samples.append(sample("Two", "two", pictures[0], pictures[2]))
    rows = TuneDataset(samples, tiny.processor, tiny.family, tiny.plan)
    model = built(tiny.plan).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(5)  # a head that is the embedding would repeat the last token of the prompt
    tuned = Tuned(tiny.plan, model, tiny.processor)
    alone = list(answers_to(rows.prompts(), tuned, 12, Together(1)))
    asked = []
    together = list(answers_to(rows.prompts(), tuned, 12, Together(len(rows)), asked.append))
    assert asked == [len(rows)]
    assert together == alone
    assert len(set(alone)) > 1, "answers that are all the same show nothing"
