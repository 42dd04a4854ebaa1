"""Which rows have how many labels is known before any is encoded."""

import dataclasses

import pytest
from tiny.rows import TinyModel

from vlmtune.data.run_data import MeasuredRows
from vlmtune.data.types import Sample, Turn
from vlmtune.estimate import learned as module
from vlmtune.estimate.given_rows import GivenRows
from vlmtune.estimate.learned import learned_of, worth_of_label


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return TinyModel("llava", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def facts(model):
    return model.source.facts("tiny")


def said(question: str, answer: str, is_learned: bool = True) -> Sample:
    turns = (Turn("user", (question,)), Turn("assistant", (answer,), is_learned=is_learned))
    return Sample((*turns, Turn("user", ("more?",)), Turn("assistant", ("no",))), "rows.jsonl:1")


def test_rows_of_one_length_differ_by_their_answers(model, facts):
    rows = [said("why? " * 40, "so"), said("why?", "so " * 66), said("why?", "so " * 66, is_learned=False)]
    given = GivenRows(MeasuredRows(rows))
    lengths = given.lengths(model.plan, model.source)
    asked, answered, given_away = learned_of(lengths, model.plan, facts).tokens
    assert given_away < 0.05 * lengths.text[2] < 0.8 * lengths.text[1] < answered <= lengths.text[1]
    assert asked < 0.05 * lengths.text[0]


def test_of_many_rows_the_longest_are_asked(model, facts, monkeypatch):
    monkeypatch.setattr(module, "ROWS_ASKED", 1)
    lengths = GivenRows(MeasuredRows([said("a", "b"), said("a", "b b")])).lengths(model.plan, model.source)
    first, second = learned_of(lengths, model.plan, facts).tokens
    assert first == 0 < second


def test_the_less_a_token_keeps_the_more_labels_are_worth(model, facts):
    recomputing = dataclasses.replace(model.plan, gradient_checkpointing=True)
    plans = [
        dataclasses.replace(recomputing, offload_activations=True),
        recomputing,
        dataclasses.replace(recomputing, checkpointed_layers=1),
        dataclasses.replace(recomputing, gradient_checkpointing=False),
    ]
    worth = [worth_of_label(plan, facts) for plan in plans]
    assert worth == sorted(set(worth), reverse=True)
