"""Files whose names are written in another way than they lie on the disk: found, or the likely reason is said."""

import os
import unicodedata
from functools import lru_cache
from urllib.parse import unquote

MOST_NAMES = 100_000
"""Of a folder whose names are compared; those of a larger one would fill memory."""
_HINT = "relative paths start from data.image_dir, or from the folder of the data file"


def other_spelling(path: str) -> str | None:
    """The one file that a path which leads nowhere can mean, None where there is none.

    Tried: the other Unicode form of é (macOS writes é as two characters), %20 as in addresses, backslashes as on
    Windows, and capitals.
    """
    for spelling in _spellings(path):
        if os.path.exists(spelling):
            return spelling
    return next(filter(None, map(_folded_path, _spellings(path))), None)


def reason_missing(path: str) -> str:
    """Why there is likely no file at a path, and what to do."""
    twins = _names(os.path.dirname(path)).get(_folded(os.path.basename(path)), ())
    if len(twins) > 1:
        return f"{' and '.join(sorted(twins))} are there: write which of them it is"
    if path[1:3] == ":\\" or ":\\" in os.path.basename(path):
        return "this is a Windows path: copy the pictures here, and write paths relative to data.image_dir"
    folder = os.path.dirname(path)
    while folder and not os.path.isdir(folder):
        path, folder = folder, os.path.dirname(folder)
    missing = os.path.basename(path)
    is_folder = path != folder and not os.path.splitext(missing)[1]
    return f"there is no folder {missing} in {folder}; {_HINT}" if is_folder else _HINT


def _spellings(path: str) -> list[str]:
    """A path as other systems write it, itself first."""
    found = [path]
    for change in (lambda text: text.replace("\\", "/"), unquote):
        found += [change(spelling) for spelling in found]
    found += [unicodedata.normalize(form, spelling) for form in ("NFC", "NFD") for spelling in found]
    return [*dict.fromkeys(found)]


def _folded_path(path: str) -> str | None:
    """The one existing path that differs in capitals and Unicode forms alone."""
    if os.path.exists(path):
        return path
    folder, name = os.path.split(path)
    if not name or (found := _folded_path(folder)) is None:
        return None
    names = _names(found).get(_folded(name), ())
    return os.path.join(found, names[0]) if len(names) == 1 else None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _names(folder: str) -> dict[str, tuple[str, ...]]:
    """Names in a folder by what they are without capitals and in one Unicode form; none of a large folder."""
    try:
        return _names_at(folder, os.stat(folder).st_mtime_ns)
    except OSError:
        return {}


@lru_cache(maxsize=16)
def _names_at(folder: str, changed_ns: int) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number == MOST_NAMES:
                return {}
            key = _folded(entry.name)
            found[key] = (*found.get(key, ()), entry.name)
    return found
