"""What `evaluation.json` holds comes back, a loss that is no number too."""

import dataclasses
import json
import math

from vlmtune.files import parse_json
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


def test_what_is_written_comes_back():
    text = a_record().to_json()
    assert parse_json(EvaluationRecord, text) == a_record()
    row = json.loads(text)["rows"][0]
    assert (row["expected"], row["scores"], row["before"]["answer"]) == (["a cat", "cat"], {"exact": 1.0}, "a dog")


def test_a_loss_that_is_no_number_comes_back_as_none():
    text = dataclasses.replace(a_record(math.nan), rows=[]).to_json()
    assert "NaN" not in text
    assert math.isnan(parse_json(EvaluationRecord, text).loss)
