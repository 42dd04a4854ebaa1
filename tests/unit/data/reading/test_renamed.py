"""Columns by the names that they have here, and the question of rows that have none."""

from collections import Counter

import pytest

from vlmtune.data.reading.renamed import renamed, with_prompt
from vlmtune.data.types import RowProblem


def test_columns_are_renamed_where_a_row_fills_them():
    counted = Counter()
    row = {"img": "a.png", "en": "A cat.", "de": None}
    assert renamed(row, {"en": "answer", "de": "question"}, counted) == {"img": "a.png", "de": None, "answer": "A cat."}
    assert counted == {"en": 1} and row["en"] == "A cat."
    assert renamed(row, {}, counted) is row and renamed([1], {"en": "answer"}, counted) == [1]
    assert renamed({"en": "a", "answer": None}, {"en": "answer"}, counted) == {"answer": "a"}
    with pytest.raises(RowProblem, match="the row has a answer already"):
        renamed({"en": "a", "answer": "b"}, {"en": "answer"}, counted)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "What?"},
        {"prompt": "What?"},
        {"messages": [{}]},
        {"conversations": [{}]},
        {"texts": [{}]},
        [1],
        "a",
    ],
)
def test_what_asks_something_keeps_its_question(row):
    assert with_prompt(row, "Which colour?") == row


@pytest.mark.parametrize("row", [{"label": "red"}, {"label": "red", "question": ""}, {"text": "a", "messages": []}])
def test_what_asks_nothing_has_the_question_of_all(row):
    assert with_prompt(row, "Which colour?") == row | {"question": "Which colour?"}
    assert with_prompt(row, None) == row
