"""Where vlmtune keeps files, how it writes them and how it reads JSON. Everything may import this."""

import errno
import hashlib
import json
import math
import os
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from vlmtune.printing import printable_json

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

PARTIAL = ".partial"
"""Ending of what is being written: only a kill leaves one."""
CANNOT_SYNC_FOLDERS = (errno.EACCES, errno.EINVAL, errno.ENOTSUP)
"""Windows opens no folder as a file; some network drives open one, and cannot sync it."""

FULL_DISK_WORDS = (
    "No space left",
    "not enough space on the disk",  # Windows
    "Disk quota exceeded",
    "PytorchStreamWriter failed",
    "unexpected pos",
    "iostream error",
)
"""safetensors reports the system's error as text only; torch.save a position in its file, or its stream."""


def cache_folder() -> Path:
    """Return vlmtune's folder in the user's cache."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local")).expanduser() / "vlmtune"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vlmtune"


def relative_path(path: Path, folder: Path) -> str:
    """Return `path` as seen from `folder`, with slashes; in full where no way leads there, as to another drive."""
    path = path.resolve()
    try:
        return Path(os.path.relpath(path, folder.resolve())).as_posix()
    except ValueError:
        return path.as_posix()


def sync(path: Path) -> None:
    """Put the content of a file, or the names in a folder, on the disk: a power cut cannot lose them afterwards."""
    is_folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)  # Windows syncs only what may be written
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if not is_folder or error.errno not in CANNOT_SYNC_FOLDERS:
            raise


def as_other_files(folder: Path) -> None:
    """Give files that a library made for their owner alone the mode that this process gives to files."""
    if sys.platform == "win32":
        return
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.iterdir():
        if file.is_file():
            file.chmod(0o666 & ~mask)


def remove(path: Path) -> None:
    """Delete a file, or a folder with all in it, if there is one; of a link only itself, never what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_disk_full(error: Exception) -> bool:
    """Return whether `error` is for lack of space."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(words in str(error) for words in FULL_DISK_WORDS)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file by one with this text: whatever ends the process, there is the old file or the new one, whole."""
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace a file by `value` as strict JSON for people to read."""
    write_atomically(path, strict_json(value, indent=2) + "\n")


def strict_json(value: Any, indent: int | None = None) -> str:
    """Return `value` as JSON text that a terminal can show; NaN and infinities, which JSON lacks, become null."""
    return printable_json(json.dumps(_finite(value), indent=indent, allow_nan=False, ensure_ascii=False))


def json_value(text: str | bytes) -> Any:
    """Return JSON that a stranger may have written.

    Raises:
        ValueError: it is not JSON, or nested more deeply than the parser goes.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_json(shape: type[T], text: str | bytes, *, unknown_keys: Literal["ignore", "forbid"] = "ignore") -> T:
    """Return JSON text as a dataclass, or another type, that its values must fit: a "1" is no number.

    Raises:
        ValueError: the text is not JSON or does not fit; pydantic's ValidationError, which names each place.
    """
    return _adapter(shape).validate_json(text, strict=True, extra=unknown_keys)


@cache
def _adapter(shape: type[T]) -> "TypeAdapter[T]":
    from pydantic import TypeAdapter  # 50 ms, which commands that read no JSON need not wait for

    return TypeAdapter(shape)


def _finite(value: Any) -> Any:
    """Return `value` with every non-finite float in it replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def file_sha256(path: Path) -> str:
    """Return the digest of a file's content; a file that stays as it is is read once."""
    status = path.stat()
    return _sha256_of(path.resolve(), status.st_size, status.st_mtime_ns)


def text_sha256(text: str) -> str:
    """Return the digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _sha256_of(path: Path, size_bytes: int, changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def code_sha256(folder: Path) -> str:
    """Return the digest of code and data files in a folder: what is kept holds for what made it."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".py", ".yaml", ".json") and file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()
