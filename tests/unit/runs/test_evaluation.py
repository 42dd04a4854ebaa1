"""`evaluation.json`: what is written comes back, a loss that is no number too."""

import dataclasses
import json
import math

import pytest
from pages import an_evaluated_row, an_evaluation

from vlmtune.errors import VlmtuneError
from vlmtune.runs.evaluation import beside_base, read_evaluation, write_evaluation
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
    write_evaluation(folder, a_record())
    assert read_evaluation(folder) == a_record()
    row = json.loads(folder.evaluation.read_text())["rows"][0]
    assert (row["expected"], row["scores"], row["before"]["answer"]) == (["a cat", "cat"], {"exact": 1.0}, "a dog")


def test_a_loss_that_is_no_number_comes_back_as_none(folder):
    write_evaluation(folder, dataclasses.replace(a_record(math.nan), rows=[]))
    assert "NaN" not in folder.evaluation.read_text()
    assert math.isnan(read_evaluation(folder).loss)


def test_a_damaged_one_is_named(folder):
    folder.evaluation.write_text('{"asked": 1}')
    with pytest.raises(VlmtuneError, match=r"evaluation\.json is damaged"):
        read_evaluation(folder)


OF_ANOTHER = Summary(asked="other/adapter", loss=1.0, metrics={}, num_cut=0)


def asked(who, *rows, **changes):
    """An evaluation of rows that no other model was asked."""
    return an_evaluation(list(rows), asked=who, **changes)


def test_an_evaluation_lies_beside_that_of_the_base():
    base, row = an_evaluated_row(loss=4.0, exact=0.0), an_evaluated_row()
    found = beside_base(asked("adapter", row), asked("base", base, loss=4.0))
    assert (found.before.asked, found.before.loss) == ("base", 4.0) and found.rows[0].before.loss == 4.0
    assert found.rows[0].loss == row.loss
    again = beside_base(asked("checkpoint-4", row), found)
    assert again.before == found.before and again.rows == found.rows, "which stays where it is asked once more"


@pytest.mark.parametrize(
    "earlier",
    [
        None,
        asked("adapter", an_evaluated_row()),
        asked("base", an_evaluated_row(2)),
        asked("base", an_evaluated_row(expected=["a dog"])),
        asked("base", an_evaluated_row(), an_evaluated_row(2)),
        asked("base", an_evaluated_row(), max_new_tokens=9),
        asked("adapter", an_evaluated_row(before=1.0), before=OF_ANOTHER),
    ],
    ids=["none", "tuned", "other row", "other answer", "other rows", "other length", "beside another run"],
)
def test_what_was_asked_something_else_is_no_before(earlier):
    record = asked("adapter", an_evaluated_row())
    assert beside_base(record, earlier) is record


def test_the_base_and_what_has_a_before_stay_as_they_are():
    base = asked("base", an_evaluated_row(loss=4.0))
    other = an_evaluation([an_evaluated_row(before=1.0)], with_base=True)
    assert beside_base(base, base) is base and beside_base(other, base) is other
