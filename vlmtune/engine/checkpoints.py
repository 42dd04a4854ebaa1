"""Checkpoints that a kill or a full disk cannot half-write: a marker is written last, old ones go after that."""

import errno
import os
import shutil
from pathlib import Path

from vlmtune.errors import VlmtuneError
from vlmtune.report import COMPLETE, RunFolder


def finish_checkpoint(checkpoint: Path, keep: int) -> None:
    """Mark `checkpoint` complete once its files are on the disk, then delete all but the newest `keep`."""
    for file in checkpoint.iterdir():
        _sync(file)
    (checkpoint / COMPLETE).touch()
    _sync(checkpoint / COMPLETE)
    _sync(checkpoint)
    done = sorted(checkpoint.parent.glob(f"checkpoint-*/{COMPLETE}"), key=lambda marker: _step(marker.parent))
    for marker in done[:-keep]:
        marker.unlink()
        shutil.rmtree(marker.parent)


def drop_incomplete(folder: RunFolder) -> None:
    """Delete what a kill left of a checkpoint that was being written."""
    for checkpoint in folder.checkpoints.glob("checkpoint-*"):
        if not (checkpoint / COMPLETE).is_file():
            shutil.rmtree(checkpoint)


def disk_full(error: Exception, checkpoint: Path) -> VlmtuneError | None:
    """Remove what was written and return the user's error, if `error` is for lack of space; else None."""
    # safetensors reports the system's error as text only.
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    if not full:
        return None
    shutil.rmtree(checkpoint, ignore_errors=True)
    kept = RunFolder(checkpoint.parent.parent).latest_checkpoint()
    return VlmtuneError(
        f"the disk is full: {checkpoint.name} could not be written",
        f"{kept.name if kept else 'no earlier checkpoint'} is intact; free some space and continue with --resume",
    )


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
