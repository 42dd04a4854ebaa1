"""Files that are none: pipes, devices, links that lead away, and more than any such file has."""

import os
import socket
from pathlib import Path

import pytest

from vlmtune import reading
from vlmtune.errors import VlmtuneError
from vlmtune.reading import check_regular, open_regular, read_regular

MIB = 2**20


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


NO_FILES = {
    "a folder": Path.mkdir,
    "a pipe": pipe,
    "a socket": listening,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_regular_file_is_named_and_not_read(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    path = Path("config.json")
    NO_FILES[kind](path)
    for read in (check_regular, open_regular, lambda path: read_regular(path, MIB)):
        with pytest.raises(VlmtuneError, match=rf"^config\.json is {kind}, not a regular file"):
            read(path)


def test_a_pipe_put_there_since_the_look_is_not_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    pipe(path)
    monkeypatch.setattr(reading, "check_regular", lambda *args, **kwargs: None)
    with pytest.raises(VlmtuneError, match="is a pipe"):
        read_regular(path, MIB)


def test_no_more_is_read_than_such_a_file_has(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"")
    os.truncate(path, MIB)
    assert len(read_regular(path, MIB)) == MIB
    os.truncate(path, 2**40)  # on the disk it takes nothing
    for read in (check_regular, open_regular, read_regular):
        with pytest.raises(VlmtuneError, match=r"config\.json is larger than 1 MiB, the most that is read of it"):
            read(path, MIB)


def test_files_that_do_not_tell_their_size_are_held_to_it_too():
    tells_nothing = Path("/proc/self/status")
    assert tells_nothing.stat().st_size == 0
    with pytest.raises(VlmtuneError, match="larger than 0 KiB"):
        read_regular(tells_nothing, 10)
    assert read_regular(tells_nothing, MIB).startswith(b"Name:")


def test_a_link_is_followed_but_in_a_run_folder(tmp_path):
    (tmp_path / "blob").write_text("{}")
    path = tmp_path / "config.json"
    path.symlink_to("blob")
    assert read_regular(path, MIB) == b"{}"
    for read in (check_regular, open_regular, lambda path, own: read_regular(path, MIB, own=own)):
        with pytest.raises(VlmtuneError, match="is a symbolic link, not a regular file"):
            read(path, own=True)


def test_a_missing_file_stays_a_missing_file_and_other_errors_are_the_users(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "none", MIB)
    with pytest.raises(VlmtuneError, match="cannot be read: File name too long"):
        read_regular(tmp_path / ("x" * 300), MIB)
