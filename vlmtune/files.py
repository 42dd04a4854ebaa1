"""Where vlmtune keeps files, and how. Everything may import this."""

import hashlib
import os
import sys
from functools import cache
from pathlib import Path


def cache_folder() -> Path:
    """Return vlmtune's folder in the user's cache."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local")).expanduser() / "vlmtune"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vlmtune"


def file_sha256(path: Path) -> str:
    """Return the digest of a file's content; a file that stays as it is is read once."""
    status = path.stat()
    return _sha256_of(path.resolve(), status.st_size, status.st_mtime_ns)


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
