"""What was written into a folder, file by file: damage is found before anything is loaded from it."""

from dataclasses import asdict, dataclass
from pathlib import Path

from vlmtune.errors import VlmtuneError
from vlmtune.files import file_sha256, parse_json, sync, write_json
from vlmtune.reading import JSON_BYTES, read_regular

MANIFEST = "manifest.json"
"""In the folder of a result; in a checkpoint the file that marks it complete is its manifest."""


@dataclass(frozen=True)
class Written:
    """One file as it was written."""

    bytes: int
    sha256: str


def write_manifest(folder: Path, name: str = MANIFEST) -> None:
    """List all files of a folder, once they are on the disk, in one more that is written last."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != name)
    for file in files:
        sync(file)
    written = {file.relative_to(folder).as_posix(): Written(file.stat().st_size, file_sha256(file)) for file in files}
    write_json(folder / name, {path: asdict(one) for path, one in written.items()})


def damage(folder: Path, name: str = MANIFEST) -> str | None:
    """Return what is wrong with a folder, in words; None when all is as it was written, or nobody can tell.

    Version 0.1.0 wrote no manifest, and an empty marker.
    """
    manifest = folder / name
    if not manifest.is_file() or manifest.stat().st_size == 0:
        return None
    try:
        listed = parse_json(dict[str, Written], read_regular(manifest, JSON_BYTES, own=True))
    except (OSError, ValueError, VlmtuneError):
        return f"{name} is not what was written"
    for path, written in listed.items():
        file = folder / path
        if file.is_symlink() or not file.is_file():
            return f"{path} is missing" if not file.exists() else f"{path} is no file of its own"
        if file.stat().st_size != written.bytes:
            return f"{path} has {file.stat().st_size:,} bytes of {written.bytes:,}"
        if file_sha256(file) != written.sha256:
            return f"{path} is not what was written: its SHA-256 is another"
    return None


def refuse_damaged(folder: Path, found: str | None, hint: str) -> None:
    """Raise when something is wrong with what a run has saved."""
    if found:
        raise VlmtuneError(f"{folder} is damaged: {found}", hint)
