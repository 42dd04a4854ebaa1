"""One process at a time writes into a run folder; the system frees the lock of a process that ends, however it ends."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

from filelock import FileLock, Timeout

from vlmtune.errors import VlmtuneError
from vlmtune.files import parse_json, write_json
from vlmtune.reading import JSON_BYTES, read_regular
from vlmtune.runs.folder import RunFolder


@dataclass(frozen=True)
class Holder:
    """The process that trains in a run folder."""

    process: int
    host: str


@contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Keep others from training in this folder, and leave word of who does.

    Raises:
        VlmtuneError: another process is at it, or no lock can be had there.
    """
    lock = FileLock(folder.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise VlmtuneError(
            f"{folder.path} is being trained by {_holder(folder)}",
            "wait until it has ended, or stop it with Ctrl-C or SIGTERM; --resume goes on from its newest checkpoint",
        ) from None
    except (OSError, NotImplementedError) as error:  # the disk is full, or its file system knows no locks
        reason = getattr(error, "strerror", None) or error
        hint = "check its permissions, or choose another output_dir"
        raise VlmtuneError(f"cannot lock the run folder {folder.path}: {reason}", hint) from None
    try:
        with suppress(OSError):  # a full disk stops the run at its first own file, and says so
            write_json(folder.holder, asdict(Holder(os.getpid(), socket.gethostname())))
        yield
    finally:
        folder.holder.unlink(missing_ok=True)
        with suppress(PermissionError):  # Windows removes no open file; elsewhere it must go before it is free
            folder.lock.unlink(missing_ok=True)
        lock.release()


def _holder(folder: RunFolder) -> str:
    try:
        holder = parse_json(Holder, read_regular(folder.holder, JSON_BYTES, own=True))
    except (OSError, ValueError, VlmtuneError):  # it has the lock, and has not said its name yet
        return "another process"
    return f"process {holder.process} on {holder.host}"
