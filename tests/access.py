"""Files that this process may not read or write, whoever runs the tests: root, who may everything, gives that up."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VERSION_3 = 0x20080522
DAC_OVERRIDE, DAC_READ_SEARCH = 1 << 1, 1 << 2
"""Capabilities that pass over permissions (linux/capability.h)."""


class Header(ctypes.Structure):
    """Whose capabilities are meant: 0 is this thread."""

    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class Sets(ctypes.Structure):
    """The first 32 capabilities, and those behind them."""

    _fields_ = [(name + half, ctypes.c_uint32) for half in "01" for name in ("effective", "permitted", "inheritable")]


@contextmanager
def like_everybody() -> Iterator[None]:
    """Let permissions hold for this thread and those that it starts."""
    if os.geteuid() != 0:
        yield
        return
    libc, header, sets = ctypes.CDLL(None, use_errno=True), Header(VERSION_3, 0), Sets()
    assert libc.capget(ctypes.byref(header), ctypes.byref(sets)) == 0
    before = sets.effective0
    sets.effective0 = before & ~(DAC_OVERRIDE | DAC_READ_SEARCH)
    assert libc.capset(ctypes.byref(header), ctypes.byref(sets)) == 0
    try:
        yield
    finally:
        sets.effective0 = before
        assert libc.capset(ctypes.byref(header), ctypes.byref(sets)) == 0


@contextmanager
def closed(path: Path, mode: int = 0) -> Iterator[None]:
    """Take the access to a file or folder away: of a folder 0o500 leaves reading, 0o600 the names in it alone."""
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        with like_everybody():
            yield
    finally:
        path.chmod(before)
