"""What a picture may take of main memory and time: held before its pixels are decoded. Measured with Pillow 13."""

import math
import os
from typing import TYPE_CHECKING, BinaryIO

from vlmtune.data.types import RowProblem
from vlmtune.units import GIB, MIB

if TYPE_CHECKING:
    from PIL.Image import Image

OPENED_BYTES = GIB
"""The most that a picture may take while it is opened: 134 million pixels of a PNG with a palette, 53 of a WebP."""
HEADER_BYTES = 16 * MIB
"""The most that is read before the pixels: some cameras put a second picture there, liars gigabytes of comments."""
_WHOLE_BYTES_PER_PX = {"WEBP": 16, "AVIF": 16, "HEIF": 16, "JPEG2000": 16}
"""By format: what its library holds beside the picture that Pillow makes."""
_HEADERS_IN_PIECES = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"P")
"""How files begin whose headers are read piece by piece until the pixels; others are read at once, or in places."""

MAX_SCANS = 100
"""Of a JPEG: a camera writes one, the web ten. Each one more is a pass over all pixels, for ten bytes."""
SCAN = b"\xff\xda"


def is_bounded(head: bytes, size_bytes: int) -> bool:
    """Return whether of a picture of this size, which begins so, more than a header could be read before its pixels."""
    return size_bytes > HEADER_BYTES and head.startswith(_HEADERS_IN_PIECES)


class Header:
    """A stream of a picture, of which no more than a header may be read until `lift` is called."""

    def __init__(self, stream: BinaryIO, label: str) -> None:
        self._stream, self._label = stream, label
        self._left_bytes: float = HEADER_BYTES

    def read(self, num_bytes: int = -1) -> bytes:
        """Return the next bytes, as any stream does."""
        data = self._stream.read(num_bytes)
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            mib = HEADER_BYTES // MIB
            raise RowProblem(f"{self._label} has more than {mib} MiB before its pixels", "save it without its metadata")
        return data

    def lift(self) -> None:
        """Let everything be read from now on."""
        self._left_bytes = math.inf

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def refuse_large(image: "Image", is_deep: bool, label: str) -> None:
    """Raise when opening a picture, of which the header is known, would take more than `OPENED_BYTES`."""
    per_px = 4 + _WHOLE_BYTES_PER_PX.get(image.format or "", 0)
    if is_deep or image.has_transparency_data:
        per_px += 12
    elif image.mode != "RGB":
        per_px += 4
    width_px, height_px = image.size
    if (num_bytes := width_px * height_px * per_px) > OPENED_BYTES:
        raise RowProblem(
            f"{label} has {width_px:,}×{height_px:,} pixels, which take {num_bytes / GIB:.1f} GiB of memory to open: "
            f"more than {OPENED_BYTES // GIB} GiB",
            "shrink it",
        )


def refuse_slow(image: "Image", stream: BinaryIO, label: str) -> None:
    """Raise when a JPEG of few bytes would take minutes to decode: it goes over its pixels again and again."""
    if image.format not in ("JPEG", "MPO") or (not image.info.get("progressive") and _is_all(image, stream)):
        return
    stream.seek(0)
    scans = sum(data.count(SCAN) for data in iter(lambda: stream.read(MIB), b""))
    if scans > MAX_SCANS:
        raise RowProblem(
            f"{label} is a JPEG of {scans:,} scans: each is a pass over all its pixels, and {MAX_SCANS} are the most",
            "save it anew",
        )


def _is_all(image: "Image", stream: BinaryIO) -> bool:
    """Return whether the first scan of a JPEG has all its colours, as a camera's: then no other one is read."""
    stream.seek(2)
    while (marker := stream.read(2)) != SCAN:
        if len(marker) < 2 or marker[0] != 0xFF:
            return False
        stream.seek(int.from_bytes(stream.read(2)) - 2, os.SEEK_CUR)
    return stream.read(3)[-1:] == bytes([len(image.getbands())])
