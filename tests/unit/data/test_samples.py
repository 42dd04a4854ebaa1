"""Every accepted shape of row and file becomes the same samples."""

import base64
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from vlmtune.data.reading.formats import parse_row
from vlmtune.data.reading.image_refs import ImageRules
from vlmtune.data.samples import BadRow, ImageRef, Rows, Sample, Turn, read_samples, require_good
from vlmtune.data.types import RowProblem
from vlmtune.errors import VlmtuneError

CAT = ImageRef(path="/data/cat.jpg")
DOG = ImageRef(path="/data/dog.jpg")
CAT_SAMPLE = (Turn("user", (CAT, "What is it?")), Turn("assistant", ("A cat.",)))
TEXT_SAMPLE = (Turn("user", ("Hello",)), Turn("assistant", ("Hi",)))
PIXELS = b"\x89PNG not a whole picture, which reading rows does not look at"
PIXELS_BASE64 = base64.b64encode(PIXELS).decode()


def turns_of(row: object, *, allow_urls: bool = False) -> tuple[Turn, ...]:
    return parse_row(row, "rows.jsonl:1", ImageRules("/data", allow_urls)).sample.turns


def chat(content: object, **columns: object) -> dict:
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A cat."}], **columns}


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "row",
    [
        chat([{"type": "image", "image": "cat.jpg"}, {"type": "text", "text": "What is it?"}]),
        chat([{"type": "image", "path": "cat.jpg"}, {"type": "input_text", "text": "What is it?"}]),
        chat([{"type": "image_url", "image_url": {"url": "cat.jpg"}}, {"type": "text", "text": "What is it?"}]),
        chat([{"type": "input_image", "image_url": "cat.jpg"}, {"type": "text", "text": "What is it?"}]),
        chat([{"image": "cat.jpg"}, {"text": "What is it?"}]),
        chat([{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}], images=["cat.jpg"]),
        chat("<image>\nWhat is it?", images=["cat.jpg"]),
        chat("<image>What is it?", image="cat.jpg"),
        chat("What is it?", images=["cat.jpg"]),
        {
            "image": "cat.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": "A cat."},
            ],
        },
        {
            "images": ["cat.jpg"],
            "prompt": [{"role": "user", "content": "What is it?"}],
            "completion": [{"role": "assistant", "content": "A cat."}],
        },
        {"image": "cat.jpg", "question": "What is it?", "answer": "A cat."},
        {"image_path": "cat.jpg", "instruction": "What is it?", "input": "", "output": "A cat."},
        {"file_name": "cat.jpg", "prefix": "What is it?", "suffix": "A cat."},
        {"file_name": "cat.jpg", "question": "What is it?", "text": "A cat."},
        {"images": [{"bytes": None, "path": "cat.jpg"}], "query": "What is it?", "label": "A cat.", "caption": None},
    ],
)
def test_shapes_of_one_picture_and_one_question_give_the_same_turns(row):
    assert turns_of(row) == CAT_SAMPLE


@pytest.mark.parametrize("row", [chat("Hello"), {"prompt": "Hello", "completion": "Hi"}, chat("Hello", images=[])])
def test_rows_without_pictures_are_fine(row):
    assert turns_of(row)[0] == TEXT_SAMPLE[0]


def test_system_turns_come_from_a_turn_or_a_column():
    system = Turn("system", ("Be brief.",))
    assert turns_of({"system": "Be brief.", "question": "Hello", "answer": "Hi"}) == (system, *TEXT_SAMPLE)
    conversations = [
        {"from": "system", "value": "Be brief."},
        {"from": "user", "value": "Hello"},
        {"from": "assistant", "value": "Hi"},
    ]
    assert turns_of({"conversations": conversations}) == (system, *TEXT_SAMPLE)


def test_placeholders_are_filled_in_order_and_lose_the_line_break_beside_them():
    row = {
        "image": ["cat.jpg", "dog.jpg", "cat.jpg"],
        "conversations": [
            {"from": "human", "value": "First\n<image>\n<image> then?"},
            {"from": "gpt", "value": "Yes\n"},
            {"from": "human", "value": "And\r\n\r\n<image>"},
            {"from": "gpt", "value": "No"},
        ],
    }
    assert turns_of(row) == (
        Turn("user", ("First", CAT, DOG, " then?")),
        Turn("assistant", ("Yes\n",)),
        Turn("user", ("And\r\n", CAT)),
        Turn("assistant", ("No",)),
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/elsewhere/cat.jpg", ImageRef(path="/elsewhere/cat.jpg")),
        ("../cat.jpg", ImageRef(path="/data/../cat.jpg")),
        (f"data:image/png;base64,{PIXELS_BASE64}", ImageRef(data=PIXELS)),
        (PIXELS, ImageRef(data=PIXELS)),
        ({"bytes": PIXELS, "path": "cat.jpg"}, ImageRef(data=PIXELS)),
        ({"bytes": PIXELS_BASE64}, ImageRef(data=PIXELS)),
        ({"base64": PIXELS_BASE64}, ImageRef(data=PIXELS)),
        ("iVBORw0KGgo" + "A" * 61, ImageRef(data=b"\x89PNG\r\n\x1a\n" + bytes(46))),
        ("/9j/cat.jpg", ImageRef(path="/9j/cat.jpg")),
        ("https://example.org/cat.jpg", ImageRef(url="https://example.org/cat.jpg")),
    ],
)
def test_values_of_images(value, expected):
    turns = turns_of({"image": value, "question": "q", "answer": "a"}, allow_urls=True)
    assert turns[0].parts == (expected, "q")


@pytest.mark.parametrize(("value", "text"), [(3, "3"), (2.5, "2.5"), (0, "0")])
def test_numbers_are_answers(value, text):
    assert turns_of({"question": "How many?", "answer": value})[1].text == text


def test_sample_gives_messages_images_prompt_and_answer():
    sample = Sample(CAT_SAMPLE, "rows.jsonl:1")
    assert sample.messages() == [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    ]
    assert sample.images == (CAT,)
    assert sample.answer == "A cat."
    assert sample.prompt == Sample(CAT_SAMPLE[:1], "rows.jsonl:1")
    assert pickle.loads(pickle.dumps(sample)) == sample  # workers get samples by pickle


def test_json_lines_mix_shapes_and_skip_blank_lines(tmp_path):
    path = tmp_path / "rows.JSONL"
    lines = [json.dumps({"question": "Hello", "answer": "Hi", "id": 7}), "", json.dumps(chat("Hello", image="cat.jpg"))]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    rows = read_samples(path)
    assert [sample.where for sample in rows.samples] == ["rows.JSONL:1", "rows.JSONL:3"]
    assert rows.samples[1].images == (ImageRef(path=str(tmp_path / "cat.jpg")),)
    assert rows.bad_rows == []
    assert rows.notes == (
        "images placed before the text of the first user turn in 1 row without <image>",
        "columns not used: id (1 row)",
    )


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"data": rows}])
def test_json_arrays(tmp_path, wrap):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(wrap([{"question": "Hello", "answer": "Hi"}, 3])))
    rows = read_samples(path)
    assert rows.samples == [Sample(TEXT_SAMPLE, "rows.json row 1")]
    assert [bad.where for bad in rows.bad_rows] == ["rows.json row 2"]


def test_parquet_with_embedded_pictures_and_lists_of_structs(tmp_path):
    import pyarrow
    import pyarrow.parquet

    picture = {"bytes": PIXELS, "path": "cat.jpg"}
    table = pyarrow.Table.from_pylist(
        [
            {"images": [picture], "messages": chat("What is it?")["messages"], "question": None, "answer": None},
            {"images": None, "messages": None, "question": "Hello", "answer": 4},
        ]
    )
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    rows = read_samples(tmp_path / "rows.parquet")
    assert rows.bad_rows == []
    assert [sample.where for sample in rows.samples] == ["rows.parquet row 1", "rows.parquet row 2"]
    assert rows.samples[0].images == (ImageRef(data=PIXELS),)
    assert rows.samples[1].answer == "4"
    assert "PNG" not in repr(rows.samples[0])  # messages and logs stay readable
    assert rows.notes[1] == "1 image embedded in the rows, held in memory: 0.0 MiB"


def test_relative_paths_start_from_image_dir(tmp_path):
    (tmp_path / "photos").mkdir()
    path = write_jsonl(tmp_path / "rows.jsonl", [{"image": "cat.jpg", "question": "q", "answer": "a"}])
    rows = read_samples(path, image_dir=tmp_path / "photos")
    assert rows.samples[0].images == (ImageRef(path=str(tmp_path / "photos" / "cat.jpg")),)


def test_many_rows(tmp_path):
    row = {
        "id": 1,
        "image": "cat.jpg",
        "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
    }
    path = write_jsonl(tmp_path / "rows.jsonl", [row] * 10_000 + [{}])
    rows = read_samples(path)
    assert len(rows.samples) == 10_000
    assert rows.samples[-1].where == "rows.jsonl:10000"
    assert rows.bad_rows[0].where == "rows.jsonl:10001"
    assert "in 10,000 rows without <image>" in rows.notes[0]


@pytest.mark.parametrize(("label", "said"), [(3, True), ("3", False), (0.5, False)])
def test_class_numbers_as_answers_are_said(tmp_path, label, said):
    rows = read_samples(write_jsonl(tmp_path / "rows.jsonl", [{"question": "q", "label": label}] * 2))
    note = "label is a number in 2 rows, and is learned as one: write names where it stands for a class"
    assert (note in rows.notes) == said


def test_reading_and_checking_import_nothing_heavy():
    code = (
        "import sys, vlmtune.data.samples, vlmtune.data.images\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL', 'pyarrow', 'urllib.request'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


# Anything at all -----------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    "messages conversations images image question prompt completion answer label system role from content value type "
    "text image_url url path bytes base64 user human assistant gpt <image> a.jpg data:image/png;base64,AAAA "
    "https://x/y.jpg file:///x \ud800 \0".split(" ")
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=8) | st.binary(max_size=8)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4), max_leaves=25
)
TURNS = st.lists(st.dictionaries(st.sampled_from(["role", "from", "content", "value"]), VALUES, max_size=3), max_size=4)
ROWS = VALUES | st.fixed_dictionaries({"messages": TURNS}, optional={"images": VALUES, "system": VALUES})


@seed(0)
@settings(max_examples=500, deadline=None, database=None)
@given(row=ROWS, allow_urls=st.booleans())
def test_any_value_is_a_sample_or_a_problem(row, allow_urls):
    try:
        sample = parse_row(row, "rows.jsonl:1", ImageRules("/data", allow_urls)).sample
    except RowProblem as problem:
        assert problem.problem
        return
    assert sample.turns[-1].role == "assistant"
    assert sample.answer.strip()
    assert all(isinstance(part, str | ImageRef) for turn in sample.turns for part in turn.parts)


# Choosing the good ones ----------------------------------------------------------------------------------------------

GOOD = Sample(TEXT_SAMPLE, "rows.jsonl:1")


def test_good_rows_pass():
    assert require_good(Rows([GOOD], [], ()), "error") == [GOOD]


def test_bad_rows_are_skipped_when_asked():
    assert require_good(Rows([GOOD], [BadRow("rows.jsonl:2", "no", None)], ()), "skip") == [GOOD]


def test_bad_rows_stop_with_all_their_names_and_each_hint_once():
    bad_rows = [BadRow(f"rows.jsonl:{number}", "the answer is empty", "write it") for number in range(2, 64)]
    with pytest.raises(VlmtuneError) as raised:
        require_good(Rows([GOOD], bad_rows, ()), "error")
    lines = str(raised.value).splitlines()
    assert lines[:5] == [
        "62 of 63 rows cannot be used",
        "hint: repair these rows, or leave them out with data.on_bad_row: skip",
        "rows.jsonl:2: the answer is empty",
        "hint: write it",
        "rows.jsonl:3: the answer is empty",
    ]
    assert lines[-2:] == ["rows.jsonl:51: the answer is empty", "... and 12 more"]


def test_skipping_every_row_is_an_error():
    with pytest.raises(VlmtuneError, match="^1 of 1 row cannot be used"):
        require_good(Rows([], [BadRow("rows.jsonl:1", "no", None)], ()), "skip")
