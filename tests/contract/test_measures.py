"""Rows measured many at a time have the tokens of each row alone, for every family, whatever stands in them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY
from tiny.rows import TinyModel

from vlmtune.data.encode import render
from vlmtune.data.measure.counting import question_text, text_tokens
from vlmtune.data.table.layout import without_images
from vlmtune.data.types import Sample

SHAPES = ("UtAt", "UptAt", "UtpAt", "UpptAt", "StUptAt", "UptAtUtAt", "UttAtt", "StUtAtUptpAtUtAt")
ONE_ANSWER_SHAPES = ("UptAt", "UtpAt", "UpttAtt")
ENOUGH_TO_LEARN_A_SHAPE = 130
ANYTHING = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
SPECIAL = st.sampled_from(["<image>", "</s>", "<|im_end|>", "</think>", " trimmed\n", "\u2003", "assistant", "USER: "])
TEXTS = st.builds("".join, st.lists(ANYTHING | SPECIAL, min_size=1, max_size=3)).filter(
    lambda text: text.strip() and not text.startswith("\n")  # joined with the prompt: test_prompts.py
)


@pytest.fixture(scope="module", params=sorted(TINY))
def tiny(request, models) -> TinyModel:
    return models(request.param)


def tokens_alone(row: Sample, tiny: TinyModel) -> int:
    """What a row has when it is rendered and tokenised by itself; an image is one mark in a template's text."""
    tokenizer = tiny.processor.tokenizer
    if tiny.family.one_answer:
        text = f"{question_text(row.turns[0].text, tiny.family)}{row.answer}{tokenizer.eos_token}"
        return len(tokenizer(text)["input_ids"])
    return len(tokenizer(render(row, tiny.processor)[0])["input_ids"]) - len(row.images)


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_tokens_are_those_of_each_row_alone(tiny, data):
    one_answer = tiny.family.one_answer
    shape = data.draw(st.sampled_from(ONE_ANSWER_SHAPES if one_answer else SHAPES))
    num_texts = shape.count("t")
    drawn = data.draw(st.lists(st.lists(TEXTS, min_size=num_texts, max_size=num_texts), min_size=1, max_size=8))
    plain = [[f"text {number}"] * num_texts for number in range(0 if one_answer else ENOUGH_TO_LEARN_A_SHAPE)]
    rows = [without_images(shape, one, f"rows.jsonl:{line}") for line, one in enumerate([*plain, *drawn], 1)]
    assert text_tokens(rows, tiny.processor, tiny.family).tolist() == [tokens_alone(row, tiny) for row in rows]
