"""The column `answers`: the first is learned, all are accepted."""

import pytest

from vlmtune.data.boxes.marks import has_marks
from vlmtune.data.reading.answers import HINT
from vlmtune.data.reading.formats import parse_row
from vlmtune.data.reading.image_refs import ImageRules
from vlmtune.data.types import RowProblem

RULES = ImageRules("/data", allow_urls=False)


def parsed(row: dict):
    return parse_row({"question": "q"} | row if "messages" not in row else row, "rows.jsonl:1", RULES)


def test_the_first_is_learned_and_each_is_accepted_once():
    sample = parsed({"answers": ["a cat", "cat", "a cat", " ", 3]}).sample
    assert (sample.answer, sample.accepted) == ("a cat", ("cat", "3"))
    assert parsed({"answers": [{"answer": "yes", "answer_id": 1}, {"answer": "no"}]}).sample.accepted == ("no",)


def test_beside_another_answer_that_one_is_learned():
    row = parsed({"answer": "cat", "answers": ["a cat", "cat"]})
    assert (row.sample.answer, row.sample.accepted, row.unused_columns) == ("cat", ("a cat",), frozenset())
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "cat"}]
    row = parsed({"messages": messages, "answers": ["a cat"]})
    assert (row.sample.answer, row.sample.accepted, row.unused_columns) == ("cat", ("a cat",), frozenset())


def test_boxes_in_them_are_read_as_in_the_answer():
    box = "<box>(10,20),(300,400)</box>"
    sample = parsed({"image": "a.png", "answers": [f"the cat {box}", f"<ref>cat</ref>{box}"]}).sample
    assert has_marks(sample.answer) and has_marks(sample.accepted[0]) and "<ref>" not in sample.accepted[0]


@pytest.mark.parametrize(
    ("answers", "problem", "hint"),
    [
        ("a cat", "answers is a string where a list of strings is expected", HINT),
        ([], "answers holds no text", HINT),
        ([" ", ""], "answers holds no text", HINT),
        (["a", None], "answers, part 2 is null where a string is expected", HINT),
        ([["a"]], "answers, part 1 is a list where a string is expected", HINT),
        (["a", "\ud800"], "answers, part 2 holds a broken character", "write the text as UTF-8"),
        (["at <bbox>"], "answers holds <bbox>, and the row has no objects",
         "write the boxes into the text, or a column objects beside it"),
        (["a", "\ufdd0"], "a text holds what is no character: U+FDD0 to U+FDD3", "remove it"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_texts_is_said(answers, problem, hint):
    with pytest.raises(RowProblem) as raised:
        parsed({"answers": answers})
    assert (raised.value.problem, raised.value.hint) == (problem, hint)
