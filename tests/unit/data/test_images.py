"""Pictures open upright, in RGB and small enough; what cannot be opened is found before training and named."""

import http.client
import io
import os
import re
import struct
import zlib

import pytest
from PIL import Image, ImageFile, ImageOps

from vlmtune.data import fetch, images
from vlmtune.data.checked import with_images_checked
from vlmtune.data.images import KNOWN, check_images, image_size_px, open_image, shrunk_size_px
from vlmtune.data.pictures import bounds
from vlmtune.data.types import BadRow, ImageRef, RowProblem, Rows, Sample, Turn
from vlmtune.errors import VlmtuneError
from vlmtune.reading import open_regular

ORIENTATION_TAG = 0x0112
REPLACE = "replace the file"


def picture(width_px: int = 60, height_px: int = 40) -> Image.Image:
    """A picture without symmetry: every turn and flip of it differs."""
    red = Image.linear_gradient("L").resize((width_px, height_px))
    green = Image.linear_gradient("L").rotate(90).resize((width_px, height_px))
    return Image.merge("RGB", (red, green, Image.new("L", (width_px, height_px), 7)))


def encoded(image: Image.Image, image_format: str, **options) -> ImageRef:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return ImageRef(data=buffer.getvalue())


def sample(*refs: ImageRef, line: int = 1) -> Sample:
    return Sample((Turn("user", (*refs, "q")), Turn("assistant", ("a",))), f"rows.jsonl:{line}", line)


def problem_of(ref: ImageRef) -> str | None:
    bad_rows, _ = check_images([sample(ref)])
    assert len(bad_rows) <= 1
    return bad_rows[0].problem if bad_rows else None


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_counts_in_size_and_picture(image_format, orientation):
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    ref = encoded(picture(), image_format, exif=exif)
    opened = open_image(ref, None)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(ref.data))).convert("RGB")
    assert opened.size == image_size_px(ref) == ((60, 40) if orientation < 5 else (40, 60))
    assert opened.tobytes() == expected.tobytes()


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0U", b"Exif\0\0not a TIFF header"])
def test_broken_exif_is_no_rotation(image_format, exif):
    ref = encoded(picture(), image_format, exif=exif)
    assert image_size_px(ref) == open_image(ref, None).size == (60, 40)


@pytest.mark.parametrize(
    ("size_px", "max_side_px", "expected"),
    [
        ((60, 40), None, (60, 40)),
        ((60, 40), 60, (60, 40)),
        ((60, 40), 600, (60, 40)),
        ((60, 40), 30, (30, 20)),
        ((40, 60), 30, (20, 30)),
        ((1000, 1), 10, (10, 1)),
    ],
)
def test_pictures_shrink_and_never_grow(size_px, max_side_px, expected):
    ref = encoded(picture(*size_px), "PNG")
    assert shrunk_size_px(size_px, max_side_px) == open_image(ref, max_side_px).size == expected


def test_a_large_jpeg_shrinks_to_the_same_picture_as_by_full_decoding():
    grain = Image.blend(picture(1200, 900), Image.effect_noise((1200, 900), 100).convert("RGB"), 0.3)
    ref = encoded(grain, "JPEG", quality=95)
    full = Image.open(io.BytesIO(ref.data)).resize((100, 75), Image.Resampling.BICUBIC)
    pairs = zip(open_image(ref, 100).tobytes(), full.tobytes(), strict=True)
    assert max(abs(a - b) for a, b in pairs) <= 3


def test_transparency_becomes_white():
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((1, 0), (255, 0, 0, 255))
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([9, 9, 9, 255, 0, 0])
    palette.putpixel((1, 0), 1)
    for ref in (encoded(clear, "PNG"), encoded(palette, "PNG", transparency=0)):
        opened = open_image(ref, None)
        assert opened.mode == "RGB"
        assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (255, 0, 0)]


def test_sixteen_bit_greys_keep_their_shades():
    deep = Image.frombytes("I;16", (4, 1), struct.pack("<4H", 0, 256, 32768, 65535))
    opened = open_image(encoded(deep, "PNG"), None)
    assert [opened.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_other_modes_become_rgb(mode):
    image_format = "JPEG" if mode == "CMYK" else "PNG"
    assert open_image(encoded(picture().convert(mode), image_format), None).mode == "RGB"


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_good_pictures_pass_and_cut_ones_are_found(image_format):
    data = encoded(picture(), image_format).data
    assert problem_of(ImageRef(data=data)) is None
    for share in (0.5, 0.9):
        cut = ImageRef(data=data[: int(len(data) * share)])
        assert problem_of(cut).startswith(f"{cut.name} is damaged: ")


def test_a_jpeg_with_bytes_after_its_end_passes():
    assert problem_of(ImageRef(data=encoded(picture(), "JPEG").data + b"phone data")) is None


def test_a_png_with_a_flipped_bit_is_found():
    data = bytearray(encoded(picture(), "PNG").data)
    data[len(data) // 2] ^= 1
    assert "is damaged: broken PNG file" in problem_of(ImageRef(data=bytes(data)))


def png_of_size(width_px: int, height_px: int) -> bytes:
    """A PNG whose header claims a size, and whose pixels do not exist."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(b"\0"), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


@pytest.mark.filterwarnings("error")
def test_a_decompression_bomb_is_refused_from_its_header():
    bomb = ImageRef(data=png_of_size(20_000, 20_000))
    assert problem_of(bomb) == f"{bomb.name} has more than 178,956,970 pixels: a decompression bomb"
    with pytest.raises(VlmtuneError, match="a decompression bomb"):
        image_size_px(bomb)
    large = ImageRef(data=png_of_size(10_000, 10_000))  # Pillow would warn; large is allowed
    assert problem_of(large) is None
    assert image_size_px(large) == (10_000, 10_000)


@pytest.mark.parametrize(
    ("mode", "image_format", "most_px"),
    [
        ("RGB", "PNG", 2**28),
        ("L", "PNG", 2**27),
        ("RGBA", "PNG", 2**26),
        ("I;16", "PNG", 2**26),
        ("RGB", "WEBP", 2**30 // 20),
    ],
)
def test_what_opening_takes_is_known_before_a_pixel_is_decoded(monkeypatch, mode, image_format, most_px):
    """34 bytes of WebP are 13,000×13,000 pixels, of which Pillow makes 2.6 GB."""
    ref = encoded(picture(60, 40).convert(mode), image_format)
    monkeypatch.setattr(bounds, "OPENED_BYTES", 2400 * 2**30 // most_px)
    assert problem_of(ref) is None
    monkeypatch.setattr(bounds, "OPENED_BYTES", 2399 * 2**30 // most_px)
    for module in (Image.Image, ImageFile.ImageFile):
        monkeypatch.setattr(module, "load", lambda self: pytest.fail("decoded"))
    assert re.search(r"has 60×40 pixels, which take 0\.0 GiB of memory to open: more than", problem_of(ref))
    with pytest.raises(VlmtuneError, match="60×40 pixels, which take"):
        open_image(ref, 10)


def test_a_picture_of_a_photo_is_not_copied_to_be_opened():
    assert isinstance(open_image(encoded(picture(), "JPEG"), None), ImageFile.ImageFile)


def commented(image_format: str) -> bytes:
    """A picture with 20 kB of comments before its pixels."""
    data, text = encoded(picture(), image_format).data, b"x" * 200
    comments, place = {
        "JPEG": (b"\xff\xfe\0\xca" + text, 2),
        "GIF": (b"\x21\xfe\xc8" + text + b"\0", 13 + 3 * 2 ** ((data[10] & 7) + 1)),
        "PNG": (chunk(b"tEXt", b"k\0" + text), 33),
        "PPM": (b"#" + text + b"\n", 3),
    }[image_format]
    return data[:place] + comments * 100 + data[place:]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("image_format", ["JPEG", "GIF", "PNG", "PPM"])
def test_comments_without_end_are_not_read(monkeypatch, image_format):
    ref = ImageRef(data=commented(image_format))
    assert problem_of(ref) is None
    monkeypatch.setattr(bounds, "HEADER_BYTES", 2**13)
    assert problem_of(ref) == f"{ref.name} has more than 0 MiB before its pixels"
    assert problem_of(encoded(picture(600, 400), image_format)) is None, "pixels are no header"


def test_a_file_no_larger_than_a_header_may_be_is_read_without_counting(monkeypatch):
    monkeypatch.setattr(images, "Header", lambda stream, label: pytest.fail(f"{label} is counted"))
    for image_format in ("JPEG", "GIF", "PNG", "PPM"):
        assert problem_of(encoded(picture(), image_format)) is None


def scanned(data: bytes, times: int) -> ImageRef:
    """A JPEG whose last scan comes so many times."""
    last = data.rindex(bounds.SCAN)
    return ImageRef(data=data[:last] + data[last:-2] * times + data[-2:])


def test_a_jpeg_is_not_decoded_a_thousand_times_over():
    data = encoded(picture(600, 400), "JPEG", progressive=True).data
    assert problem_of(scanned(data, 1)) is None and 5 < data.count(bounds.SCAN) < bounds.MAX_SCANS
    ref = scanned(data, 1000)
    assert problem_of(ref) == (
        f"{ref.name} is a JPEG of {data.count(bounds.SCAN) + 999:,} scans: "
        "each is a pass over all its pixels, and 100 are the most"
    )


def test_nor_where_each_scan_has_one_colour():
    data = encoded(picture(), "JPEG").data
    assert problem_of(scanned(data, 1000)) is None, "all colours are in the first scan: no other one is decoded"
    scan = data.rindex(bounds.SCAN)
    one_colour = data[:scan] + b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" + data[scan + 14 :]
    assert "is a JPEG of 1,000 scans" in problem_of(scanned(one_colour, 1000))


def test_files_that_cannot_be_opened_are_named_with_the_reason(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "drawing.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    where = "relative paths start from data.image_dir, or from the folder of the data file"
    formats = f"known formats: {KNOWN}"
    expected = {
        "missing.jpg": ("does not exist", where),
        "empty.jpg": ("is an empty file", REPLACE),
        "text.jpg": ("is not an image", formats),
        "folder.jpg": ("is a folder, not a regular file", None),
        "pipe.jpg": ("is a pipe, not a regular file", None),
        "drawing.jpg": ("is not an image", formats),
        "x" * 300: ("cannot be read: File name too long", None),
    }
    for name, (reason, hint) in expected.items():
        ref = ImageRef(path=str(tmp_path / name))
        problem = f"image {ref.path} {reason}"
        assert check_images([sample(ref)])[0] == [BadRow("rows.jsonl:1", problem, hint)]
        with pytest.raises(VlmtuneError) as raised:
            open_image(ref, None)
        assert (raised.value.message, raised.value.hint) == (problem, hint)


def test_every_row_of_a_bad_picture_is_named_and_each_file_is_opened_once(tmp_path, monkeypatch):
    picture().save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("hello")
    good, bad = ImageRef(path=str(tmp_path / "good.png")), ImageRef(path=str(tmp_path / "bad.png"))
    opened = []
    monkeypatch.setattr(images, "open_regular", lambda path: opened.append(str(path)) or open_regular(path))
    samples = [sample(good, bad, bad, line=1), sample(good, line=2), sample(bad, line=3)]
    assert [row.where for row in check_images(samples, num_threads=2)[0]] == ["rows.jsonl:1", "rows.jsonl:3"]
    assert sorted(opened) == [bad.path, good.path]


def test_bad_pictures_join_the_bad_rows_in_order(tmp_path):
    missing = ImageRef(path=str(tmp_path / "missing.png"))
    good = sample(line=11)
    rows = Rows(
        [sample(missing, line=2), good, sample(missing, line=30)], [BadRow("rows.jsonl:9", "no", None, 9)], ("note",)
    )
    checked = with_images_checked(rows)
    assert checked.samples == [good]
    assert [bad.where for bad in checked.bad_rows] == ["rows.jsonl:2", "rows.jsonl:9", "rows.jsonl:30"]
    assert checked.notes == ("note",)


def test_mutated_pictures_raise_nothing_else():
    import random

    rng = random.Random(0)
    formats = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "ICO", "AVIF", "JPEG2000")
    deep = Image.frombytes("I;16", (60, 40), bytes(range(240)) * 20)
    sources = [encoded(picture(), name).data for name in formats]
    sources += [encoded(deep, name).data for name in ("PNG", "TIFF")]
    num_opened = 0
    for _ in range(1000):
        data = bytearray(rng.choice(sources))
        for _ in range(rng.choice((1, 3, 20))):
            data[rng.randrange(min(len(data), rng.choice((40, 10_000))))] = rng.randrange(256)
        ref = ImageRef(data=bytes(data[: rng.choice((len(data), rng.randrange(1, len(data))))]))
        check_images([sample(ref)], num_threads=1)
        try:
            assert open_image(ref, None).size == image_size_px(ref)
            num_opened += 1
        except VlmtuneError:
            continue
    assert 0 < num_opened < 1000


# Addresses -----------------------------------------------------------------------------------------------------------


class Response(io.BytesIO):
    """What urllib gives for an address."""


def answer_with(monkeypatch, result):
    class Opener:
        def open(self, request, timeout):
            if isinstance(result, Exception):
                raise result
            return Response(result)

    monkeypatch.setattr(fetch, "_opener", Opener)


def test_a_fetched_picture_opens(monkeypatch):
    answer_with(monkeypatch, encoded(picture(), "PNG").data)
    ref = ImageRef(url="https://example.org/a.png")
    assert check_images([sample(ref)])[0] == []
    assert open_image(ref, 30).size == (30, 20)


@pytest.mark.parametrize("error", [OSError("refused"), http.client.IncompleteRead(b""), ValueError("no host")])
def test_a_failed_fetch_is_a_bad_row(monkeypatch, error):
    answer_with(monkeypatch, error)
    assert check_images([sample(ImageRef(url="https://example.org/a.png"))])[0] == [
        BadRow(
            "rows.jsonl:1",
            f"image https://example.org/a.png cannot be fetched: {error}",
            "download it and write its path",
        )
    ]


def test_an_endless_download_stops(monkeypatch):
    monkeypatch.setattr(fetch, "MAX_DOWNLOAD_BYTES", 2**20)
    answer_with(monkeypatch, bytes(2**20 + 1))
    assert (
        problem_of(ImageRef(url="https://example.org/a.png")) == "image https://example.org/a.png is larger than 1 MiB"
    )


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://example.org/a.png", "data:,hello"])
def test_only_http_is_fetched_even_after_a_redirect(url):
    with pytest.raises(RowProblem, match="unknown url type"):
        fetch.fetch(url)
