"""`evaluation.json`: what is written comes back, a loss that is no number too."""

import dataclasses
import json
import math

import pytest

from vlmtune.errors import VlmtuneError
from vlmtune.runs.evaluation import read_evaluation, write_evaluation
from vlmtune.runs.records import Answered, EvaluatedRow, EvaluationRecord, Summary


def a_record(loss=0.5) -> EvaluationRecord:
    before = Answered(answer="a dog", loss=3.0, cut=True, scores={"exact": 0.0})
    row = EvaluatedRow(
        where="held-out.jsonl:1", images=["../../cat.png"], question="What is it?", expected=["a cat", "cat"],
        answer="cat", loss=loss, cut=False, scores={"exact": 1.0}, before=before,
    )  # fmt: skip
    return EvaluationRecord(
        asked="adapter", loss=loss, metrics={"exact": 1.0}, num_cut=0, data="held-out.jsonl", max_new_tokens=8,
        before=Summary(asked="base", loss=3.0, metrics={"exact": 0.0}, num_cut=1), rows=[row],
    )  # fmt: skip


def test_what_is_written_comes_back(folder):
    assert read_evaluation(folder) is None
    write_evaluation(folder.evaluation, a_record())
    assert read_evaluation(folder) == a_record()
    row = json.loads(folder.evaluation.read_text())["rows"][0]
    assert (row["expected"], row["scores"], row["before"]["answer"]) == (["a cat", "cat"], {"exact": 1.0}, "a dog")


def test_a_loss_that_is_no_number_comes_back_as_none(folder):
    write_evaluation(folder.evaluation, dataclasses.replace(a_record(math.nan), rows=[]))
    assert "NaN" not in folder.evaluation.read_text()
    assert math.isnan(read_evaluation(folder).loss)


def test_a_damaged_one_is_named(folder):
    folder.evaluation.write_text('{"asked": 1}')
    with pytest.raises(VlmtuneError, match=r"evaluation\.json is damaged"):
        read_evaluation(folder)
