"""A disk that is full at a chosen call: a file is opened to be written, renamed or synced, or a folder is made."""

import errno
import os
import sys
from pathlib import Path

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class FailingDisk:
    """Fails calls below a folder from the n-th on, or that one alone. For a process of its own: it stays until the end.

    Libraries in other languages write unseen once a file is open; that the room ends there shows `make full-disk`.
    """

    def __init__(self, folder: Path, fails_at: int | None, lasting: bool) -> None:
        self.folder, self.fails_at, self.lasting, self.calls = str(folder), fails_at, lasting, 0

    def begin(self) -> None:
        """Fail from now on."""
        real = os.fsync

        def fsync(handle: int) -> None:
            self._called("fsync", os.readlink(f"/proc/self/fd/{handle}"))
            real(handle)

        os.fsync = fsync
        sys.addaudithook(self._heard)

    def _heard(self, event: str, args: tuple) -> None:
        """What Python tells of each such call, whoever makes it."""
        if event in ("os.rename", "os.mkdir") or (event == "open" and (args[2] or 0) & WRITES):
            self._called(event, args[0])

    def _called(self, call: str, path: object) -> None:
        if not isinstance(path, str | os.PathLike) or not os.path.abspath(path).startswith(self.folder):
            return
        self.calls += 1
        if self.fails_at and (self.calls == self.fails_at or (self.lasting and self.calls > self.fails_at)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
