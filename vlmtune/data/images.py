"""Opening and checking pictures. Pillow is imported on use; every problem with a picture names it."""

import io
import os
import struct
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from vlmtune.data.pictures.bounds import Header, is_bounded, refuse_large, refuse_slow
from vlmtune.data.pictures.finding import other_spelling, reason_missing
from vlmtune.data.pictures.formats import KNOWN, readable_formats, register_heic
from vlmtune.data.pictures.other_files import HEAD_BYTES, is_heic, what_it_is
from vlmtune.data.pictures.pixels import is_deep, is_deep_colour, read_lower_bytes, to_rgb, upright
from vlmtune.data.types import BadRow, ImageRef, RowProblem, Sample, count
from vlmtune.errors import VlmtuneError
from vlmtune.reading import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

DEEP, SEVERAL, RESPELT = 1, 2, 4
"""What is remarkable in a picture that can be used, as bits of `Look.traits`."""
TRAITS = {
    DEEP: "more than 8 bits a colour: of each the darkest level used becomes black, the brightest white",
    SEVERAL: "several frames or pages: the first is used",
    RESPELT: "a name written in another way than on the disk (Unicode form, %20, backslashes, capitals): found",
}

_CHUNK_IMAGES = 64  # one future per image would cost more than many of the checks
_ORIENTATION_TAG = 0x0112
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    EOFError,
    RuntimeError,
    struct.error,
)
"""What Pillow's readers raise on damaged files."""


class Look(NamedTuple):
    """What is seen of a picture that can be used."""

    width_px: int
    height_px: int
    traits: int
    """Bits of `TRAITS`."""


def image_size_px(ref: ImageRef) -> tuple[int, int]:
    """Width and height as shown, EXIF rotation applied; read from the header, nothing is decoded."""
    with _usable(ref) as image:
        return _shown_size_px(image)


def image_bytes(ref: ImageRef) -> bytes:
    """The encoded picture as it is stored."""
    try:
        with _stream(ref) as stream:
            return stream.read()
    except RowProblem as problem:
        raise VlmtuneError(problem.problem, problem.hint) from None
    except OSError as error:
        raise VlmtuneError(f"{_label(ref)} cannot be read: {error.strerror}") from None


def shrunk_size_px(size_px: tuple[int, int], max_side_px: int | None) -> tuple[int, int]:
    """The size that `open_image` gives a picture of `size_px`: longer side at most `max_side_px`, never enlarged."""
    longer_px = max(size_px)
    if max_side_px is None or longer_px <= max_side_px:
        return size_px
    width_px, height_px = (max(1, round(side_px * max_side_px / longer_px)) for side_px in size_px)
    return width_px, height_px


def open_image(ref: ImageRef, max_side_px: int | None) -> "Image":
    """The picture as RGB: upright, transparency on white, longer side shrunk to `max_side_px`."""
    from PIL.Image import Resampling

    with _usable(ref) as image:
        orientation = _orientation(image)
        width_px, height_px = shrunk_size_px(image.size, max_side_px)
        if (width_px, height_px) != image.size:
            # JPEGs decode at a half, quarter or eighth for a fraction of the time; twice the target keeps the quality.
            image.draft(None, (2 * width_px, 2 * height_px))
        with _usable(ref) if is_deep_colour(image) else nullcontext() as lower_bytes:
            if lower_bytes is not None:
                read_lower_bytes(lower_bytes)
            rgb = to_rgb(image, lower_bytes)
        if rgb.size != (width_px, height_px):
            rgb = rgb.resize((width_px, height_px), Resampling.BICUBIC)
        return upright(rgb, orientation)


def check_images(samples: Sequence[Sample], *, num_threads: int | None = None) -> tuple[list[BadRow], list[Look]]:
    """One `BadRow` for every row and picture in it that cannot be used, and what is seen of each that can.

    Each picture is looked at once.
    """
    refs = list(dict.fromkeys(ref for sample in samples for ref in sample.images))
    chunks = [refs[start : start + _CHUNK_IMAGES] for start in range(0, len(refs), _CHUNK_IMAGES)]
    problems: dict[ImageRef, RowProblem] = {}
    looks: list[Look] = []
    # Warnings' filters belong to the process, not to a thread: set once, around all of them.
    with without_warnings(), ThreadPoolExecutor(num_threads or min(8, os.cpu_count() or 1)) as pool:
        for chunk_problems, chunk_looks in pool.map(_looks_of, chunks):
            problems |= chunk_problems
            looks += chunk_looks
    bad_rows = [
        BadRow(sample.where, problems[ref].problem, problems[ref].hint, sample.number)
        for sample in samples
        for ref in dict.fromkeys(sample.images)
        if ref in problems
    ]
    return bad_rows, looks


def notes_of(traits: Iterable[int]) -> tuple[str, ...]:
    """What people are told of pictures with such traits."""
    numbers = Counter(trait for one in traits if one for trait in TRAITS if one & trait)
    return tuple(f"{count(numbers[trait], 'image')} with {words}" for trait, words in TRAITS.items() if numbers[trait])


def _looks_of(refs: list[ImageRef]) -> tuple[dict[ImageRef, RowProblem], list[Look]]:
    problems, looks = {}, []
    for ref in refs:
        try:
            looks.append(checked_look(ref))
        except RowProblem as problem:
            problems[ref] = problem
    return problems, looks


def checked_look(ref: ImageRef) -> Look:
    """What is seen of a picture that can be used; raises `RowProblem`.

    Pillow's warnings are not held back here: the filters belong to the process, `without_warnings` sets them once.
    """
    with _opened(ref) as (image, stream):
        look = Look(*_shown_size_px(image), _traits(image, stream, ref))
        _check(image, stream)
        return look


def _traits(image: "Image", stream: BinaryIO, ref: ImageRef) -> int:
    has_several = image.format != "MPO" and getattr(image, "is_animated", False)  # phones put a depth map behind photos
    is_respelt = ref.path is not None and stream.name != ref.path
    return DEEP * is_deep(image) | SEVERAL * has_several | RESPELT * is_respelt


def _shown_size_px(image: "Image") -> tuple[int, int]:
    width_px, height_px = image.size
    return (height_px, width_px) if _orientation(image) >= 5 else (width_px, height_px)


def _check(image: "Image", stream: BinaryIO) -> None:
    """Find damage without decoding where the format allows it: decoding 100,000 photos takes hours, this seconds.

    A PNG carries a checksum in every chunk. A JPEG carries none; its usual damage is a missing end (a download that
    stopped, a full disk), so the end-of-image marker is looked for, and the decoder asked only where it is not last.
    Damage inside a complete JPEG passes: it shows as wrong colours, or as an error of `open_image`. Others are decoded.
    """
    if image.format == "PNG":
        image.verify()
        return
    if image.format in ("JPEG", "MPO"):
        stream.seek(-2, os.SEEK_END)
        if stream.read(2) == b"\xff\xd9":
            return
    image.load()


@contextmanager
def _usable(ref: ImageRef) -> "Iterator[Image]":
    """The opened picture; what is wrong with it is a `VlmtuneError` here."""
    try:
        with without_warnings(), _opened(ref) as (image, _):
            yield image
    except RowProblem as problem:
        raise VlmtuneError(problem.problem, problem.hint) from None


@contextmanager
def _opened(ref: ImageRef) -> "Iterator[tuple[Image, BinaryIO]]":
    """The picture with its header read, and its stream; Pillow's errors become a `RowProblem`, in the body too."""
    from PIL import Image

    label = _label(ref)
    try:
        with _stream(ref) as stream, _identified(stream, label) as image:
            refuse_large(image, is_deep(image), label)
            refuse_slow(image, stream, label)
            yield image, stream
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise RowProblem(f"{label} has more than {limit:,} pixels: a decompression bomb", "shrink it") from None
    except _DAMAGE as error:
        raise RowProblem(f"{label} is damaged: {error}", "replace the file") from None


def _identified(stream: BinaryIO, label: str) -> "Image":
    """The picture in a stream with its header read."""
    from PIL import Image, UnidentifiedImageError

    size_bytes = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(HEAD_BYTES)
    if is_heic(head):
        register_heic()
    header = Header(stream, label) if is_bounded(head, size_bytes) else None
    try:
        image = Image.open(header or stream, formats=readable_formats())
        if header:
            header.lift()
        return image
    except UnidentifiedImageError:
        if is_heic(head) and "HEIF" in readable_formats():
            raise RowProblem(f"{label} is damaged: no HEIC picture is in it", "replace the file") from None
        what, way_out = what_it_is(head) or ("not an image", f"known formats: {KNOWN}")
        raise RowProblem(f"{label} is {what}", way_out) from None


def _stream(ref: ImageRef) -> BinaryIO:
    if ref.data is not None:
        return io.BytesIO(ref.data)
    if ref.url is not None:
        from vlmtune.data.fetch import fetch

        return io.BytesIO(fetch(ref.url))
    assert ref.path is not None
    try:
        return _file(ref.path, ref)
    except FileNotFoundError:
        if found := other_spelling(ref.path):
            return _file(found, ref)
        raise RowProblem(f"{_label(ref)} does not exist", reason_missing(ref.path)) from None


def _file(path: str, ref: ImageRef) -> BinaryIO:
    try:
        file = open_regular(Path(path))
    except VlmtuneError as error:
        raise RowProblem(f"image {error.message}") from None
    if os.fstat(file.fileno()).st_size == 0:
        file.close()
        raise RowProblem(f"{_label(ref)} is an empty file", "replace the file")
    return file


def _label(ref: ImageRef) -> str:
    return ref.name if ref.data is not None else f"image {ref.name}"


def _orientation(image: "Image") -> int:
    """The EXIF orientation, 1 to 8, that is still to be applied; 1 where the header has none that can be read."""
    if image.format == "TIFF":  # Pillow turns these itself
        return 1
    if image.format == "PNG" and "exif" not in image.info:  # asking would decode the picture
        return 1
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DAMAGE:
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


@contextmanager
def without_warnings() -> Iterator[None]:
    """Pillow warns about large pictures and sloppy files; what matters is an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
