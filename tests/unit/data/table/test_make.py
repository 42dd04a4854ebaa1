"""A large file becomes a table once: whole or not at all, whatever happens meanwhile."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from vlmtune.data import samples
from vlmtune.data.samples import read_samples
from vlmtune.data.table import make
from vlmtune.data.table.rows import TableRows
from vlmtune.errors import VlmtuneError
from vlmtune.files import cache_folder

from .conftest import read, write

pytestmark = pytest.mark.usefixtures("every_file_is_large")


def tables() -> list[Path]:
    """The tables in the cache folder, and what else lies beside them."""
    return sorted((cache_folder() / "rows").iterdir())


@pytest.fixture
def made(monkeypatch) -> list[Path]:
    """The data files that were read, each time."""
    files = []
    real = make._write
    monkeypatch.setattr(
        make, "_write", lambda folder, read, *rest: files.append(read.files[0].path) or real(folder, read, *rest)
    )
    return files


def as_read_in_memory(path: Path, monkeypatch, **options):
    monkeypatch.setattr(samples, "LARGE_BYTES", 2**60)
    rows = read(path, **options)
    assert isinstance(rows.samples, list)
    monkeypatch.setattr(samples, "LARGE_BYTES", 0)
    return rows


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
@pytest.mark.usefixtures("in_this_process")
def test_a_table_holds_what_a_list_holds(ending, data, monkeypatch):
    path = data.with_suffix(f".{ending}")
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    pixels = (data.parent / "a.png").read_bytes()
    if ending == "json":
        path.write_text(json.dumps(rows))
    elif ending == "parquet":
        rows = [row for row in rows if isinstance(row, dict) and "conversations" not in row and "images" not in row]
        named = {"image": None}
        rows = [
            named | row | ({"image": {"path": row["image"], "bytes": None}} if "image" in row else {}) for row in rows
        ]
        for question, image in (("embedded?", pixels), ("embedded and broken?", b"no picture")):
            rows.append({"image": {"path": None, "bytes": image}, "question": question, "answer": "yes"})
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=4)
    expected, found = as_read_in_memory(path, monkeypatch), read(path)
    assert isinstance(found.samples, TableRows) and len(found.samples) >= 12
    assert list(found.samples) == expected.samples == found.samples[:]
    assert [sample.number for sample in found.samples] == [sample.number for sample in expected.samples]
    assert found.bad_rows == expected.bad_rows and len(found.bad_rows) >= 2
    assert [bad.number for bad in found.bad_rows] == sorted(bad.number for bad in expected.bad_rows)
    assert found.num_images == expected.num_images >= 2
    assert [note.replace(", held in memory", "") for note in expected.notes] == list(found.notes)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.usefixtures("in_this_process")
def test_keys_of_turns_and_columns_are_told_the_same(ending, tmp_path, monkeypatch):
    rows: list[dict] = []
    for keys in ({"loss": False}, {"weight": 0.5}, {"reasoning_content": "so", "id": 3}, {"mask": 1}):
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        rows.append({"messages": [turns[0], turns[1] | keys, *turns]})
    rows += [{"question": "<video>what?", "answer": "a"}, {"videos": ["v.mp4"], "question": "q", "answer": "a"}]
    rows += [{"tools": [{"name": "crop"}], "question": "q", "answer": "a"}, {"question": "q", "answer": "a", "id": 1}]
    path = write(tmp_path / "rows.jsonl", rows)
    if ending == "parquet":
        path = path.with_suffix(".parquet")
        columns = dict.fromkeys(key for row in rows for key in row)
        table = pyarrow.Table.from_pylist([columns | row for row in rows])
        pyarrow.parquet.write_table(table, path, row_group_size=2)
    expected, found = as_read_in_memory(path, monkeypatch), read(path)
    assert isinstance(found.samples, TableRows) and list(found.samples) == expected.samples
    assert (found.bad_rows, found.notes) == (expected.bad_rows, expected.notes)
    assert [bad.number for bad in found.bad_rows] == [2, 4, 5, 6]
    assert found.notes == ("columns not used: id (1 row), messages.id (1 row)",)
    masked, thinking, called, _ = found.samples
    assert not masked.turns[1].is_answer and "so" in thinking.turns[1].more and "crop" in called.tools


def test_processes_read_pieces_and_the_rows_stay_in_order(data, monkeypatch):
    assert list(read(data).samples) == as_read_in_memory(data, monkeypatch).samples
    (table,) = tables()
    assert len(list(table.glob("part-*"))) > 3


def test_what_stops_reading_is_raised_with_its_line_and_leaves_nothing(tmp_path):
    rows = [{"question": "q" * 100, "answer": "a"}] * 20
    path = write(tmp_path / "rows.jsonl", rows)
    for line in (7, 15):
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join([*lines[: line - 1], b'{"question": "\xff"}\n', *lines[line:]]))
    with pytest.raises(VlmtuneError, match="^rows.jsonl:7: not UTF-8: byte 0xff at position 15"):
        read_samples(path)
    assert tables() == []


@pytest.mark.usefixtures("in_this_process")
def test_the_second_reading_takes_the_table(data, made):
    first, second = read(data), read(data)
    assert made == [data]
    assert list(first.samples) == list(second.samples) and first.bad_rows == second.bad_rows
    assert first.notes == second.notes


@pytest.mark.usefixtures("in_this_process")
def test_a_copy_of_the_file_has_the_same_table_and_names_of_its_own(data, made):
    first = read(data)
    copy = Path(shutil.copy(data, data.with_name("other.jsonl")))
    second = read(copy)
    assert made == [data]
    assert [sample.where for sample in second.samples] == [
        sample.where.replace("rows.jsonl", "other.jsonl") for sample in first.samples
    ]
    assert second.bad_rows[0].where == "other.jsonl:8"


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("change", ["content", "image_dir", "allow_urls", "code", "Pillow"])
def test_what_decides_the_rows_decides_the_table(change, data, made, monkeypatch):
    read(data)
    options = {}
    if change == "content":
        data.write_text(data.read_text().replace("question 0?", "question 9?"))
    elif change == "image_dir":
        options["image_dir"] = data.parent / "images"
        (data.parent / "images").mkdir()
    elif change == "allow_urls":
        options["allow_urls"] = True
    elif change == "code":
        monkeypatch.setattr(make, "code_sha256", lambda folder: "changed")
    else:
        monkeypatch.setattr(make, "version", lambda library: "changed")
    rows = read(data, **options)
    assert made == [data, data] and len(tables()) == 2
    assert rows.samples[0].turns[0].text == ("question 9?" if change == "content" else "question 0?")


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("name", ["found.json", "part-000002.arrow", "index.npy", "refs.arrow"])
@pytest.mark.parametrize("damage", ["gone", "short", "empty"])
def test_a_broken_table_is_made_anew(name, damage, data, made):
    first = read(data)
    (table,) = tables()
    file = table / name
    content = file.read_bytes()
    file.unlink() if damage == "gone" else file.write_bytes(content[: len(content) // 2] if damage == "short" else b"")
    second = read(data)
    assert made == [data, data]
    assert list(second.samples) == list(first.samples)
    assert tables() == [table]


@pytest.mark.usefixtures("in_this_process")
def test_a_full_disk_means_rows_in_memory_and_a_note(data, monkeypatch):
    expected = as_read_in_memory(data, monkeypatch)

    def full(self, number, layout):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(make.PartWriter, "add", full)
    rows = read(data)
    assert rows.samples == expected.samples and rows.bad_rows == expected.bad_rows
    assert rows.notes == (*expected.notes, "the rows are held in memory: [Errno 28] No space left on device")
    assert tables() == []


def test_a_cache_that_cannot_be_written_means_rows_in_memory(data, monkeypatch, tmp_path):
    (tmp_path / "a-file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a-file"))
    rows = read(data)
    assert isinstance(rows.samples, list) and len(rows.samples) == 17
    assert rows.notes[-1].startswith("the rows are held in memory: ")


@pytest.mark.usefixtures("in_this_process")
def test_a_cache_that_can_only_be_read_is_read(data, made, monkeypatch):
    read(data)

    def refused(path, *times):
        raise PermissionError(path)

    monkeypatch.setattr(make.os, "utime", refused)
    assert isinstance(read(data).samples, TableRows) and made == [data]


@pytest.mark.usefixtures("in_this_process")
def test_a_folder_whose_name_is_not_utf8_means_rows_in_memory(data, tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    for name in ("rows.jsonl", "a.png", "b.png"):
        shutil.copy(tmp_path / name, folder)
    rows = read(folder / "rows.jsonl")
    assert isinstance(rows.samples, list) and len(rows.samples) == 17


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("other", ["whole", "broken"])
def test_of_two_runs_at_once_both_have_a_whole_table(other, data, monkeypatch):
    """The other run puts its table in place while this one is writing."""
    real = make._write

    def slower(folder, path, *rest):
        monkeypatch.setattr(make, "_write", real)
        read_samples(data)
        if other == "broken":
            (tables()[0] / "index.npy").write_bytes(b"")
        real(folder, path, *rest)

    monkeypatch.setattr(make, "_write", slower)
    rows = read(data)
    assert isinstance(rows.samples, TableRows) and len(rows.samples) == 17
    (table,) = tables()
    assert make.whole_table(table, rows.samples.files) is not None


@pytest.mark.usefixtures("in_this_process")
def test_the_tables_used_last_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(make, "KEPT", 2)
    files = [write(tmp_path / f"{name}.jsonl", [{"question": name, "answer": "a"}]) for name in "abc"]
    for days_ago, path in zip((3, 2), files, strict=False):
        known = set(tables()) if (cache_folder() / "rows").exists() else set()
        read(path)
        (new,) = set(tables()) - known
        os.utime(new, (time.time() - days_ago * 86400,) * 2)
    read(files[0])
    used = set(tables())
    rows = read(files[2])
    left = set(tables())
    assert len(left) == 2 and len(left & used) == 1
    assert make.whole_table(*(left & used), rows.samples.files).unused_columns == {}
    assert next(iter(read_samples(files[0]).samples)).turns[0].text == "a" and set(tables()) == left


KILLED = """
import sys, time
from pathlib import Path
from vlmtune.data import samples
from vlmtune.data.table import make
samples.LARGE_BYTES, make.PIECE_BYTES = 0, 300
if __name__ == "__main__":
    samples.read_samples(Path(sys.argv[1]))
"""


def test_a_kill_in_the_middle_leaves_nothing_in_the_way(tmp_path, monkeypatch):
    path = write(tmp_path / "rows.jsonl", [{"question": "q" * 200, "answer": "a"}] * 3000)
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    process = subprocess.Popen([sys.executable, script, path], stderr=subprocess.PIPE)
    folder = cache_folder() / "rows"
    while not list(folder.glob("partial-*/made/part-000003.arrow")):
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.01)
    workers = children_of(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(workers) >= 1 and len(tables()) == 1
    deadline_s = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline_s, "a process went on without its parent"
        time.sleep(0.05)
    monkeypatch.setattr(make, "PIECE_BYTES", 2**20)
    monkeypatch.setattr(make, "ABANDONED_S", -1)
    rows = read_samples(path).samples
    assert len(rows) == 3000
    (table,) = tables()
    assert make.whole_table(table, rows.files) is not None, "what the killed run left is removed"


def children_of(process: int) -> list[int]:
    """The processes that were started to read, without multiprocessing's own."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == process and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.mark.usefixtures("in_this_process")
def test_embedded_pictures_lie_in_the_table(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    pixels = (tmp_path / "a.png").read_bytes()
    rows = [{"image": {"bytes": pixels}, "question": f"{number}?", "answer": "yes"} for number in range(5)]
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    found = read(path)
    (tmp_path / "a.png").unlink()
    assert found.samples[4].images[0].data == pixels
    assert found.notes[-1] == f"5 images embedded in the rows: {5 * len(pixels) / 2**20:.1f} MiB"
