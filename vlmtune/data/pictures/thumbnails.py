"""Pictures as small as a page for people needs them."""

import base64
import io
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import PurePath
from urllib.parse import urlsplit

from vlmtune.data.images import open_image
from vlmtune.data.types import ImageRef
from vlmtune.errors import VlmtuneError
from vlmtune.runs.pages.evaluation import Picture
from vlmtune.units import MIB

SIDE_PX = 256
QUALITY = 75
A_ROW = 4
"""Pictures of a row that are shown."""
ALL_BYTES = 8 * MIB
"""Of all thumbnails of a page, as text."""


def pictures_of_rows(rows: Mapping[int, Iterable[ImageRef]]) -> dict[int, list[Picture]]:
    """Return what a page shows of the pictures of each row; a picture that cannot be opened has its reason."""
    left_bytes = ALL_BYTES
    small = lru_cache(maxsize=len(rows))(thumbnail)
    shown: dict[int, list[Picture]] = {}
    for row, refs in rows.items():
        refs = tuple(refs)
        shown[row] = []
        for ref in refs[:A_ROW]:
            picture = small(ref) if left_bytes > 0 else Picture(_name(ref), "", "no room on this page")
            left_bytes -= len(picture.uri)
            shown[row].append(picture)
        if len(refs) > A_ROW:
            shown[row].append(Picture(f"{len(refs) - A_ROW:,} more", "", "not shown"))
    return shown


def thumbnail(ref: ImageRef) -> Picture:
    """Return a picture as a JPEG inside of a `data:` address, its longer side at most SIDE_PX."""
    try:
        image = open_image(ref, SIDE_PX)
    except VlmtuneError:
        return Picture(_name(ref), "", "cannot be opened")
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return Picture(_name(ref), "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode())


def _name(ref: ImageRef) -> str:
    """Return how a picture is called, without the folders of this machine."""
    return PurePath(ref.path or urlsplit(ref.url or "").path).name or ref.name
