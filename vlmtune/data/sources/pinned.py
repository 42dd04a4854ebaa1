"""Arrow files of a hub data set at one commit, as `datasets` found them: it asks the hub again at every start."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vlmtune.errors import VlmtuneError
from vlmtune.files import cache_folder, parse_json, strict_json, write_atomically
from vlmtune.reading import read_regular
from vlmtune.units import MIB

MOST_BYTES = 64 * MIB
ArrowFiles = list[tuple[Path, int]]
"""Files, each with the number of its first row."""


@dataclass(frozen=True)
class _Kept:
    files: tuple[str, ...]
    first_numbers: tuple[int, ...]
    sizes_bytes: tuple[int, ...]


def kept_files(key: str, find: Callable[[], ArrowFiles]) -> ArrowFiles:
    """Return the files that were found for this key, which no one has changed since; find them anew otherwise."""
    path = cache_folder() / "hub-rows" / f"{key[:32]}.json"
    try:
        kept = parse_json(_Kept, read_regular(path, MOST_BYTES, own=True))
        if _sizes(kept.files) == kept.sizes_bytes:
            return [*zip(map(Path, kept.files), kept.first_numbers, strict=True)]
    except (OSError, ValueError, VlmtuneError):
        pass
    found = find()
    _keep(path, found)
    return found


def _keep(path: Path, found: ArrowFiles) -> None:
    """Write down what was found, unless the folder cannot be written: then it is found again the next time."""
    files, first_numbers = tuple(str(file) for file, _ in found), tuple(number for _, number in found)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, strict_json(asdict(_Kept(files, first_numbers, _sizes(files)))))
    except OSError:
        return


def _sizes(files: Sequence[str]) -> tuple[int, ...]:
    return tuple(Path(file).stat().st_size for file in files)
