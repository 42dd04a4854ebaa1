"""Files that a kill, a power cut or a full disk cannot half-write, on systems that cannot do all that Linux can."""

import dataclasses
import errno
import json
import math
import ntpath
import os
from pathlib import Path

import pytest

from vlmtune import files
from vlmtune.files import (
    PARTIAL,
    json_value,
    parse_json,
    relative_path,
    remove,
    strict_json,
    sync,
    write_atomically,
    write_json,
)


@pytest.fixture
def calls(monkeypatch):
    """What is synced and put in its place, in that order."""
    seen = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(_name(handle)) or fsync(handle))
    monkeypatch.setattr(
        Path, "replace", lambda self, target: seen.append(f"{target.name} in place") or replace(self, target)
    )
    return seen


def _name(handle: int) -> str:
    return Path(os.readlink(f"/proc/self/fd/{handle}")).name


def test_a_file_is_on_the_disk_before_it_takes_the_place_of_another(tmp_path, calls):
    path = tmp_path / "folder" / "a.json"
    path.parent.mkdir()
    path.write_text("old")
    write_atomically(path, "nü\n")
    assert path.read_bytes() == "nü\n".encode()
    assert calls == [f"a.json.{os.getpid()}{PARTIAL}", "a.json in place", "folder"]
    assert os.listdir(path.parent) == ["a.json"]


def test_of_a_link_nothing_but_the_link_is_written_or_deleted(tmp_path):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "folder"
    (elsewhere / "deep").mkdir(parents=True)
    (elsewhere / "file").write_text("theirs")
    folder.mkdir()
    (folder / "link").symlink_to(elsewhere)
    (folder / "file").symlink_to(elsewhere / "file")
    write_atomically(folder / "file", "ours")
    assert (folder / "file").read_text() == "ours" and not (folder / "file").is_symlink()
    for path in (folder / "link", folder / "file", folder / "none", folder):
        remove(path)
    assert os.listdir(tmp_path) == ["elsewhere"]
    assert sorted(os.listdir(elsewhere)) == ["deep", "file"] and (elsewhere / "file").read_text() == "theirs"


@pytest.mark.parametrize("owner_and_name", [(os, "fsync"), (Path, "replace")], ids=["sync", "replace"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, owner_and_name):
    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a.json"
    path.write_text("old")
    monkeypatch.setattr(*owner_and_name, fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


def refuse_folders(number):
    """`os.open` and `os.fsync` of a system that cannot sync folders: Windows refuses the first, a drive the second."""
    real_open, real_fsync = os.open, os.fsync

    def open_(path, flags, *args, **kwargs):
        if number == errno.EACCES and os.path.isdir(path):
            raise PermissionError(number, "Permission denied")
        return real_open(path, flags, *args, **kwargs)

    def fsync(handle):
        if number != errno.EACCES and os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(number, "cannot sync")
        real_fsync(handle)

    return open_, fsync


@pytest.mark.parametrize("number", files.CANNOT_SYNC_FOLDERS, ids=errno.errorcode.get)
def test_a_folder_that_cannot_be_synced_is_left(tmp_path, monkeypatch, number):
    open_, fsync = refuse_folders(number)
    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "fsync", fsync)
    sync(tmp_path)
    write_atomically(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_other_errors_of_a_folder_are_told(tmp_path, monkeypatch, number):
    _, fsync = refuse_folders(number)
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="cannot sync"):
        sync(tmp_path)


def test_a_file_that_cannot_be_synced_is_told(tmp_path, monkeypatch):
    def fail(handle):
        raise OSError(errno.EINVAL, "cannot sync")

    (tmp_path / "a").touch()
    monkeypatch.setattr(os, "fsync", fail)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="cannot sync"):
        sync(tmp_path / "a")
    assert len(os.listdir("/proc/self/fd")) == before, "and closed again"


def test_a_file_is_synced_as_windows_wants_it_open_for_writing(tmp_path, monkeypatch):
    (tmp_path / "a").touch()
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, flags: opened.append((path, flags)) or real(path, flags))
    sync(tmp_path / "a")
    assert opened == [(tmp_path / "a", os.O_RDWR)]


def test_paths_are_relative_with_slashes(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    (tmp_path / "real" / "deep").mkdir(parents=True)
    assert relative_path(tmp_path / "data" / "a.jsonl", tmp_path / "runs" / "x") == "../../data/a.jsonl"
    assert relative_path(tmp_path / "data", tmp_path / "link") == "../../data"


def test_across_drives_a_path_stays_whole(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="on mount"):
        ntpath.relpath("D:/models/a", "C:/runs")
    monkeypatch.setattr(os.path, "relpath", lambda path, start: ntpath.relpath("D:/models/a", "C:/runs"))
    assert relative_path(tmp_path / "models" / ".." / "a", tmp_path) == f"{tmp_path}/a"


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the tests read."""

    number: int
    share: float = 0.5
    words: tuple[str, ...] = ()
    by_size: dict[int, float | None] = dataclasses.field(default_factory=dict)


def test_json_is_strict_both_ways(tmp_path):
    shape = Shape(3, 1.0, ("ü", "b"), {4: math.inf, 5: 2.0})
    write_json(tmp_path / "a.json", dataclasses.asdict(shape))
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text.endswith("\n") and '"ü"' in text and json.loads(text, parse_constant=pytest.fail)
    assert parse_json(Shape, text) == dataclasses.replace(shape, by_size={4: None, 5: 2.0})
    assert strict_json([math.nan, (1.5, -math.inf)]) == "[null, [1.5, null]]"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"number": "3"}',
        '{"number": 3.5}',
        '{"number": true}',
        '{"number": 3, "words": "ab"}',
        "\xff",
    ],
)
def test_what_does_not_fit_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"Shape|JSON"):
        parse_json(Shape, text.encode("latin-1"))


def test_keys_that_are_not_known_are_left_out_unless_they_are_forbidden():
    assert parse_json(Shape, '{"number": 3, "new": 1}') == Shape(3)
    with pytest.raises(ValueError, match="new"):
        parse_json(Shape, '{"number": 3, "new": 1}', unknown_keys="forbid")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5_000, b"\xff", "", "{'a': 1}"])
def test_json_of_a_stranger_ends_in_one_kind_of_error(text):
    with pytest.raises(ValueError):
        json_value(text)
    assert json_value('{"a": [1]}') == {"a": [1]}
