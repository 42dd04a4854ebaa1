"""Pictures of every depth and kind of colour open as people see them."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vlmtune.data.images import check_images, notes_of, open_image
from vlmtune.data.types import ImageRef, Sample, Turn


def encoded(image: Image.Image, image_format: str, **options) -> ImageRef:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return ImageRef(data=buffer.getvalue())


def png_16(levels: np.ndarray, colour_type: int) -> ImageRef:
    """A PNG with 16 bits a colour, which Pillow does not write: levels [height, width, colours]."""
    height, width = levels.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in levels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    chunks = (b"IHDR" + header, b"IDAT" + zlib.compress(lines), b"IEND")
    return ImageRef(
        data=b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    )


RGB, WHITE_IS_ZERO = 2, 0


def tiff_16(levels: np.ndarray, kind: int = RGB) -> ImageRef:
    """An uncompressed little-endian TIFF with 16 bits a colour: levels [height, width, 3], or [height, width]."""
    height, width, colours = (*levels.shape, 1)[:3]
    pixels = levels.astype("<u2").tobytes()
    bits = (258, 3, 3, 8 + len(pixels)) if colours == 3 else (258, 3, 1, 16)
    entries = [(256, 3, 1, width), (257, 3, 1, height), bits, (259, 3, 1, 1), (262, 3, 1, kind)]
    entries += [(273, 4, 1, 8), (277, 3, 1, colours), (278, 3, 1, height), (279, 4, 1, len(pixels)), (284, 3, 1, 1)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    start = 8 + len(pixels) + 6
    return ImageRef(
        data=b"II*\0" + struct.pack("<I", start) + pixels + struct.pack("<3H", 16, 16, 16) + directory + bytes(4)
    )


def opened(ref: ImageRef) -> np.ndarray:
    return np.asarray(open_image(ref, None))


def looked_at(*refs: ImageRef) -> tuple[str, ...]:
    """The notes on pictures that can all be used."""
    bad_rows, looks = check_images([Sample((Turn("user", refs), Turn("assistant", ("a",))), "rows.jsonl:1")])
    assert bad_rows == []
    return notes_of(look.traits for look in looks)


RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
GREYS = np.rint(np.arange(4096) / 4095 * 255).astype(np.uint8).reshape(64, 64)


@pytest.mark.parametrize(
    "ref",
    [
        pytest.param(encoded(Image.fromarray(RAMP), "PNG"), id="12 of 16 bits"),
        pytest.param(encoded(Image.fromarray(RAMP), "TIFF"), id="TIFF"),
        pytest.param(encoded(Image.fromarray(RAMP + 30_000), "PNG"), id="not from 0 on"),
        pytest.param(encoded(Image.fromarray(RAMP.astype(np.int32) - 1024), "TIFF"), id="Hounsfield units"),
        pytest.param(encoded(Image.fromarray(RAMP.astype(np.float32) / 4095), "TIFF"), id="shares"),
    ],
)
def test_deep_greys_use_the_whole_range(ref):
    for colour in range(3):
        assert np.abs(opened(ref)[..., colour].astype(int) - GREYS).max() <= 1
    assert looked_at(ref) == (
        "1 image with more than 8 bits a colour: of each the darkest level used becomes black, the brightest white",
    )


@pytest.mark.parametrize("file", [lambda levels: png_16(levels, 2), tiff_16], ids=["PNG", "TIFF"])
def test_deep_colours_use_the_whole_range_together(file):
    levels = np.stack([RAMP, RAMP // 2, RAMP // 4], axis=2)
    expected = np.rint(levels / 4095 * 255)
    ref = file(levels)
    assert np.abs(opened(ref) - expected).max() <= 1
    assert len(looked_at(ref)) == 1


def test_deep_transparent_colours_are_on_white():
    levels = np.stack([RAMP, RAMP, RAMP, np.full_like(RAMP, 65_535)], axis=2)
    levels[0, :, 3] = 0
    pixels = opened(png_16(levels, 6))
    assert (pixels[0] == 255).all()
    assert np.abs(pixels[1:, :, 0].astype(int) - GREYS[1:]).max() <= 1


def test_levels_that_count_from_white_on_are_turned():
    ref = tiff_16(RAMP, WHITE_IS_ZERO)
    assert np.abs(opened(ref)[..., 0].astype(int) - (255 - GREYS.astype(int))).max() <= 1


def test_what_is_no_number_is_black():
    levels = np.array([[np.nan, 1.0], [3.0, np.inf]], np.float32)
    assert opened(encoded(Image.fromarray(levels), "TIFF"))[..., 0].tolist() == [[0, 0], [255, 0]]


@pytest.mark.parametrize(("level", "shade"), [(0, 0), (1000, 255)])
def test_one_level_alone_is_black_or_white(level, shade):
    assert (opened(encoded(Image.fromarray(np.full((4, 4), level, np.uint16)), "PNG")) == shade).all()


def test_eight_bits_stay_as_they_are():
    dark = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    assert opened(encoded(dark, "PNG"))[..., 0].tolist() == np.asarray(dark).tolist()
    assert looked_at(encoded(dark, "PNG")) == ()


@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
def test_ink_becomes_its_colour(image_format):
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(opened(encoded(red, image_format)).astype(int) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (Image.new("RGBA", (2, 2), (255, 0, 0, 0)), {}),
        (Image.new("LA", (2, 2), (10, 0)), {}),
        (Image.new("RGB", (2, 2), (1, 2, 3)), {"transparency": (1, 2, 3)}),
        (Image.new("L", (2, 2), 7), {"transparency": 7}),
        (Image.new("P", (2, 2), 0), {"transparency": 0}),
        (Image.new("1", (2, 2), 0), {"transparency": 0}),
    ],
)
def test_what_is_transparent_is_white(image, options):
    assert (opened(encoded(image, "PNG", **options)) == 255).all()


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_of_several_frames_is_used_and_said(image_format):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    ref = encoded(frames[0], image_format, save_all=True, append_images=frames[1:])
    assert np.abs(opened(ref).astype(int) - [255, 0, 0]).max() <= 2
    assert looked_at(ref) == ("1 image with several frames or pages: the first is used",)


def test_a_deep_picture_shrinks_after_its_range_was_used():
    checks = np.indices((64, 64)).sum(axis=0) % 2 * 4000
    ref = encoded(Image.fromarray(checks.astype(np.uint16)), "PNG")
    assert abs(int(np.asarray(open_image(ref, 16)).mean()) - 127) <= 1
