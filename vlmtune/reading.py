"""Files that somebody else may have made: opened where they are regular and of a bounded size.

A pipe would wait for ever, a device never end, a link in a run folder lead out of it.
"""

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from vlmtune.errors import VlmtuneError
from vlmtune.units import GIB, KIB, MIB

YAML_BYTES = MIB
"""The most that is read of a config or a preset."""
JSON_BYTES = 32 * MIB
"""The most that is read of a JSON file of a model or a run; full of empty lists it takes 25 times that in memory."""

REGULAR, FOLDER = "a regular file", "a folder"
_KINDS = (
    (stat.S_ISREG, REGULAR),
    (stat.S_ISDIR, FOLDER),
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""A pipe that took the place of the file since it was looked at is opened without a writer, and refused."""


def refuse_other_kinds(files: Iterable[Path], folders: Iterable[Path]) -> None:
    """Raise where something else, a link included, is in the place of one's own files or folders.

    What the system does not let one look at is told by whatever comes to open it.
    """
    for wanted, paths in ((REGULAR, files), (FOLDER, folders)):
        for path in paths:
            with suppress(OSError):
                if (found := _kind(path.lstat().st_mode)) != wanted:
                    raise VlmtuneError(f"{path} is {found}, not {wanted}", "move it away: no run has put it there")


def _kind(mode: int) -> str:
    return next((words for is_one, words in _KINDS if is_one(mode)), "an unknown kind of file")


HINT = "put the right file in its place"


def check_regular(path: Path, max_bytes: int | None = None, *, own: bool = False, hint: str = HINT) -> None:
    """Raise unless `path` is a regular file of at most `max_bytes`, for libraries that open files themselves.

    An `own` file, as those of a run folder, is no link either: a link leads to where nobody knows.

    Raises:
        FileNotFoundError: there is none.
        VlmtuneError: it is no regular file, too large, or cannot be reached.
    """
    try:
        status = os.stat(path, follow_symlinks=not own)
    except OSError as error:
        raise _told(path, error) from None
    _refuse(path, status, max_bytes, hint)


def open_regular(path: Path, max_bytes: int | None = None, *, own: bool = False, hint: str = HINT) -> BinaryIO:
    """Open what `check_regular` lets pass, to read bytes."""
    check_regular(path, max_bytes, own=own, hint=hint)
    try:
        file = open(path, "rb", opener=_without_waiting)
    except OSError as error:
        raise _told(path, error) from None
    try:
        _refuse(path, os.fstat(file.fileno()), max_bytes, hint)
    except VlmtuneError:
        file.close()
        raise
    return file


def read_regular(path: Path, max_bytes: int, *, own: bool = False, hint: str = HINT) -> bytes:
    """Return what is in a file that `check_regular` lets pass."""
    with open_regular(path, max_bytes, own=own, hint=hint) as file:
        try:
            content = file.read(max_bytes + 1)
        except OSError as error:
            raise _told(path, error) from None
    if len(content) > max_bytes:  # files of /proc do not tell their size, others grow
        raise _too_large(path, max_bytes, hint)
    return content


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | _NO_WAIT)


def _told(path: Path, error: OSError) -> Exception:
    """Return what the system says of a file as the user's error, but that there is none as it is."""
    if isinstance(error, FileNotFoundError):
        return error
    return VlmtuneError(f"{path} cannot be read: {error.strerror}", "check the path and its permissions")


def _refuse(path: Path, status: os.stat_result, max_bytes: int | None, hint: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise VlmtuneError(f"{path} is {_kind(status.st_mode)}, not {REGULAR}", hint)
    if max_bytes is not None and status.st_size > max_bytes:
        raise _too_large(path, max_bytes, hint)


def _too_large(path: Path, max_bytes: int, hint: str) -> VlmtuneError:
    return VlmtuneError(f"{path} is larger than {_size(max_bytes)}, the most that is read of it", hint)


def _size(num_bytes: int) -> str:
    unit, name = next(((unit, name) for unit, name in ((GIB, "GiB"), (MIB, "MiB")) if num_bytes >= unit), (KIB, "KiB"))
    return f"{num_bytes / unit:,.0f} {name}"
