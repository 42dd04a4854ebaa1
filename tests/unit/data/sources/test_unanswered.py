"""Rows that are to be answered: every shape with an answer or without one, pictures with one question for all."""

import gzip
import json
from pathlib import Path

import pytest

from vlmtune.data.sources.opened import Settings
from vlmtune.data.sources.unanswered import OPEN, to_answer
from vlmtune.data.types import BadRow
from vlmtune.errors import VlmtuneError

USER, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def read(tmp_path, *rows: object, prompt: str | None = None) -> list:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return answerable(tmp_path / "rows.jsonl", prompt=prompt)


def answerable(path: Path, **settings: object) -> list:
    return list(to_answer(path, Settings(Path, **settings)))


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"question": "q"}, ["q", OPEN]),
        ({"question": "q", "answer": None}, ["q", OPEN]),
        ({"question": "q", "answer": ""}, ["q", OPEN]),
        ({"question": "q", "answer": " \n"}, ["q", OPEN]),
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
    for question in ({}, {"question": ""}, {"question": " \n"}):
        [bad] = read(tmp_path, {"image": "a.png"} | question)
        assert bad == BadRow("rows.jsonl:1", "the row has no question", "--prompt TEXT asks all such rows")
    [bad] = read(tmp_path, {"messages": [{"role": "user", "content": " "}]})
    assert bad.problem == "turn 1 (user) is empty"


def test_rows_are_read_from_whatever_a_source_may_be(tmp_path):
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "shards").mkdir()
    rows = [{"frage": "q1", "image": "a.png"}, {"frage": "", "image": None}, {"frage": "q3", "image": None}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "shards" / "rows.parquet")
    for ending, blank in ((".csv", ","), (".tsv", "\t")):
        table = "\n".join(
            blank.join((row["frage"], row["image"] or "")) for row in [{"frage": "frage", "image": "image"}, *rows]
        )
        (tmp_path / f"rows{ending}").write_text(table)
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress((tmp_path / "rows.csv").read_bytes()))
    for name, row in (
        ("rows.jsonl.gz", "rows.jsonl.gz:"),
        ("shards/rows.parquet", "rows.parquet row "),
        ("shards", "rows.parquet row "),
        ("sh*/*.parquet", "rows.parquet row "),
        ("rows.csv", "rows.csv row "),
        ("rows.tsv", "rows.tsv row "),
        ("rows.csv.gz", "rows.csv.gz row "),
    ):
        found = answerable(tmp_path / name, columns={"frage": "question", "antwort": "answer"}, prompt="all?")
        assert [one.where for one in found] == [f"{row}{number}" for number in (1, 2, 3)], name
        assert [one.turns[0].text for one in found] == ["q1", "all?", "q3"], name
        assert len(found[0].images) == 1, name


def test_pictures_of_rows_are_where_the_config_says(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "question": "q"}\n')
    [row] = answerable(tmp_path / "rows.jsonl", image_dir=str(tmp_path / "photos"))
    assert row.images[0].path == str(tmp_path / "photos" / "a.png")


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
    found = answerable(tmp_path, prompt="What?")
    assert [one.where for one in found] == ["a.webp", "b.PNG", "sub/a.jpg"]
    assert found[2].images[0].path == str(tmp_path / "sub/a.jpg") and found[2].turns[0].text == "What?"
    [one] = answerable(tmp_path / "b.PNG", prompt="What?")
    assert one.where == "b.PNG" and one.images[0].path == str(tmp_path / "b.PNG")


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(VlmtuneError, match="holds no rows: no .jsonl, .* and no pictures"):
        answerable(tmp_path, prompt="What?")
    with pytest.raises(VlmtuneError, match="data file .*nothing.jsonl does not exist"):
        answerable(tmp_path / "nothing.jsonl")
