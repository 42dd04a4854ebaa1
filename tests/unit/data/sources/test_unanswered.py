"""Rows that are to be answered: every shape with an answer or without one, pictures with one question for all."""

import json

import pytest

from vlmtune.data.reading.unanswered import OPEN, rows_to_answer
from vlmtune.data.types import BadRow
from vlmtune.errors import VlmtuneError

USER, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def read(tmp_path, *rows: object, prompt: str | None = None) -> list:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(rows_to_answer(tmp_path / "rows.jsonl", prompt, allow_urls=False))


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"question": "q"}, ["q", OPEN]),
        ({"question": "q", "answer": None}, ["q", OPEN]),
        ({"question": "q", "answer": ""}, ["q", OPEN]),
        ({"question": "q", "answer": "a"}, ["q", "a"]),
        ({"question": "q", "answers": ["a", "b"]}, ["q", "a"]),
        ({"question": "q", "text": "a"}, ["q", "a"]),
        ({"messages": [USER]}, ["q", OPEN]),
        ({"messages": [USER, SAID]}, ["q", "a"]),
        ({"conversations": [{"from": "human", "value": "q"}]}, ["q", OPEN]),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, ["q", "a"]),
        ({"prompt": [USER]}, ["q", OPEN]),
        ({"prompt": [USER], "completion": [SAID]}, ["q", "a"]),
        ({"system": "s", "question": "q"}, ["s", "q", OPEN]),
        ({"question": "q", "texts": []}, ["q", OPEN]),
    ],
)
def test_an_answer_may_stand_or_be_missing_in_every_shape(row, turns, tmp_path):
    [sample] = read(tmp_path, row)
    assert [turn.text for turn in sample.turns] == turns and sample.where == "rows.jsonl:1"


def test_the_prompt_asks_rows_that_ask_nothing(tmp_path):
    own, none = read(tmp_path, {"question": "own?"}, {"image": "a.png"}, prompt="all?")
    assert (own.turns[0].text, none.turns[0].text, len(none.images)) == ("own?", "all?", 1)
    [bad] = read(tmp_path, {"image": "a.png"})
    assert bad == BadRow("rows.jsonl:1", "the row has no question", "--prompt TEXT asks all such rows")


def test_what_is_no_row_is_said_in_its_place(tmp_path):
    found = read(
        tmp_path, {"question": "q"}, 3, {"messages": []}, {"messages": [SAID]}, {"question": "q", "answer": [1]}
    )
    assert [isinstance(one, BadRow) for one in found] == [False, True, True, True, True]
    assert [one.where for one in found] == [f"rows.jsonl:{number}" for number in range(1, 6)]


def test_pictures_of_a_folder_are_asked_in_the_order_of_their_names(tmp_path):
    for name in ("b.PNG", "sub/a.jpg", "a.webp", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = list(rows_to_answer(tmp_path, "What?", allow_urls=False))
    assert [one.where for one in found] == ["a.webp", "b.PNG", "sub/a.jpg"]
    assert found[2].images[0].path == str(tmp_path / "sub/a.jpg") and found[2].turns[0].text == "What?"
    [one] = rows_to_answer(tmp_path / "b.PNG", "What?", allow_urls=False)
    assert one.where == "b.PNG" and one.images[0].path == str(tmp_path / "b.PNG")


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(VlmtuneError, match="holds no picture"):
        list(rows_to_answer(tmp_path, "What?", allow_urls=False))
    with pytest.raises(VlmtuneError, match="data file .*nothing.jsonl does not exist"):
        list(rows_to_answer(tmp_path / "nothing.jsonl", "What?", allow_urls=False))
