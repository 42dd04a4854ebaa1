"""Files that somebody else may have made: opened where they are regular and of a bounded size.

A pipe would wait for ever, a device never end, a link in a run folder lead out of it.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from vlmtune.errors import VlmtuneError
from vlmtune.units import GIB, KIB, MIB

YAML_BYTES = MIB
"""The most that is read of a config or a preset."""
JSON_BYTES = 32 * MIB
"""The most that is read of a JSON file of a model or a run; full of empty lists it takes 25 times that in memory."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""A pipe that took the place of the file since it was looked at is opened without a writer, and refused."""


def kind_of(mode: int) -> str | None:
    """Return what a file is by its `st_mode`, in words; None for a regular file."""
    return None if stat.S_ISREG(mode) else next((words for is_one, words in _KINDS if is_one(mode)), "no regular file")


def check_file(path: Path, max_bytes: int | None = None, *, own: bool = False) -> None:
    """Raise unless `path` is a regular file of at most `max_bytes`, for readers that open files themselves.

    An `own` file, as those of a run folder, is no link either: a link leads to where nobody knows.

    Raises:
        FileNotFoundError: there is none.
        VlmtuneError: it is something else, or larger.
    """
    _refuse(path, path.lstat() if own else path.stat(), max_bytes)


def open_file(path: Path, max_bytes: int | None = None, *, own: bool = False) -> BinaryIO:
    """Open what `check_file` lets pass, to read bytes."""
    check_file(path, max_bytes, own=own)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | _NO_WAIT))
    try:
        _refuse(path, os.fstat(file.fileno()), max_bytes)
    except VlmtuneError:
        file.close()
        raise
    return file


def read_file(path: Path, max_bytes: int, *, own: bool = False) -> bytes:
    """Return what is in a file that `check_file` lets pass.

    Raises:
        FileNotFoundError: there is none.
        VlmtuneError: it is no regular file, too large, or cannot be read.
    """
    try:
        with open_file(path, max_bytes, own=own) as file:
            content = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise VlmtuneError(f"{path} cannot be read: {error.strerror}", "check the path and its permissions") from None
    if len(content) > max_bytes:  # files of /proc do not tell their size, others grow
        raise _too_large(path, max_bytes)
    return content


def _refuse(path: Path, status: os.stat_result, max_bytes: int | None) -> None:
    if kind := kind_of(status.st_mode):
        raise VlmtuneError(f"{path} is {kind}, not a regular file", "put the file itself in its place")
    if max_bytes is not None and status.st_size > max_bytes:
        raise _too_large(path, max_bytes)


def _too_large(path: Path, max_bytes: int) -> VlmtuneError:
    return VlmtuneError(f"{path} is larger than {_size(max_bytes)}, the most that is read of it", "give the right file")


def _size(num_bytes: int) -> str:
    unit, name = next(((unit, name) for unit, name in ((GIB, "GiB"), (MIB, "MiB")) if num_bytes >= unit), (KIB, "KiB"))
    return f"{num_bytes / unit:,.0f} {name}"
