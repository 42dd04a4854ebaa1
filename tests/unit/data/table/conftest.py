"""Tables of a few rows, made in this process unless a test asks for others."""

import json
from pathlib import Path

import pytest
from PIL import Image

from vlmtune.data import samples
from vlmtune.data.checked import with_images_checked
from vlmtune.data.samples import read_samples
from vlmtune.data.table import looks, make
from vlmtune.data.types import Rows


@pytest.fixture
def every_file_is_large(monkeypatch):
    """Read even the smallest file into a table, in pieces of some rows."""
    monkeypatch.setattr(samples, "LARGE_BYTES", 0)
    monkeypatch.setattr(make, "PIECE_BYTES", 300)
    monkeypatch.setattr(looks, "REFS_AT_ONCE", 2)


@pytest.fixture
def in_this_process(monkeypatch):
    """Do the work of the pieces here: starting processes takes longer than the whole test."""
    for module in (make, looks):
        monkeypatch.setattr(module, "each", lambda work, tasks: map(work, tasks))


@pytest.fixture
def data(tmp_path) -> Path:
    """A data file of twenty rows: texts, pictures, several turns, and three rows that cannot be used."""
    for name, size_px in (("a", (40, 30)), ("b", (30, 50))):
        Image.new("RGB", size_px, "red").save(tmp_path / f"{name}.png")
    rows: list[object] = [{"question": f"question {number}?", "answer": f"answer {number}"} for number in range(14)]
    rows[3] = {"image": "a.png", "question": "one picture?", "answer": "yes"}
    rows[4] = {"images": ["b.png", "a.png"], "question": "two pictures?", "answer": "yes"}
    rows[5] = {"question": "question 5?", "answers": ["answer 5", "five"]}
    rows[7] = {"question": "no answer?"}
    rows.append({"image": "gone.png", "question": "no picture?", "answer": "no"})
    rows.append("not a row")
    turns = [("human", "<image>\nfirst?"), ("gpt", "one"), ("human", "second?"), ("gpt", "two")]
    rows += [{"image": "a.png", "conversations": [{"from": who, "value": text} for who, text in turns]}] * 4
    return write(tmp_path / "rows.jsonl", rows)


def write(path: Path, rows: list) -> Path:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, **options) -> Rows:
    """Return the rows of a file, pictures looked at."""
    return with_images_checked(read_samples(path, **options))
