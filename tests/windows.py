"""A file system that refuses what Windows refuses: the calls of `os` are Linux's, fewer of them succeed."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytest import MonkeyPatch

Call = Callable[..., Any]


def act_like_windows(patch: MonkeyPatch, drive: Path) -> None:
    """Change `os`; `drive` stands for another drive than everything else."""
    changed = {"open": _files_only, "fsync": _writable_only, "rename": _to_a_new_name, "replace": _of_files_at_rest}
    changed |= dict.fromkeys(("unlink", "remove"), _at_rest)
    for name, change in changed.items():
        patch.setattr(os, name, change(getattr(os, name)))
    patch.setattr(os.path, "relpath", _within_a_drive(os.path.relpath, drive))
    patch.setattr(shutil, "_use_fd_functions", False)  # Linux's shortcut for rmtree


def in_use(path: os.PathLike | str) -> bool:
    """Return whether this process has the file, or one in the folder, open or mapped into memory."""
    handles = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    mapped = [line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line]
    own = os.path.realpath(path)
    return any(used == own or used.startswith(f"{own}/") for used in (*handles, *mapped))


def _files_only(real: Call) -> Call:
    def open_(path, flags, *args, **kwargs):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, flags, *args, **kwargs)

    return open_


def _writable_only(real: Call) -> Call:
    def fsync(handle):
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(handle)

    return fsync


def _at_rest(real: Call) -> Call:
    def call(path, *args, **kwargs):
        if in_use(path) and ".filelock-probe" not in str(path):  # filelock does without on Windows
            raise PermissionError(errno.EACCES, "The process cannot access the file: it is being used", str(path))
        return real(path, *args, **kwargs)

    return call


def _to_a_new_name(real: Call) -> Call:
    def rename(path, target):
        if os.path.exists(target):
            raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists", str(target))
        _at_rest(real)(path, target)

    return rename


def _of_files_at_rest(real: Call) -> Call:
    def replace(path, target):
        if os.path.isdir(target) or os.path.exists(target) and in_use(target):
            raise PermissionError(errno.EACCES, "Access is denied", str(target))
        _at_rest(real)(path, target)

    return replace


def _within_a_drive(real: Call, drive: Path) -> Call:
    def relpath(path, start=os.curdir):
        if len({Path(os.path.abspath(one)).is_relative_to(drive) for one in (path, start)}) > 1:
            raise ValueError("path is on mount 'D:', start on mount 'C:'")
        return real(path, start)

    return relpath
