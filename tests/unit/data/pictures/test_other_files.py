"""A file that is no picture is called by what it is; HEIC opens where the library for it is installed."""

import io
import sys
import types

import pytest
from PIL import Image, ImageFile, features

from vlmtune.data.images import KNOWN, check_images, open_image
from vlmtune.data.pictures import formats
from vlmtune.data.types import ImageRef, Sample, Turn

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)


def problem_of(data: bytes) -> tuple[str, str | None] | None:
    ref = ImageRef(data=data)
    bad_rows, _ = check_images([Sample((Turn("user", (ref,)), Turn("assistant", ("a",))), "rows.jsonl:1")])
    return (bad_rows[0].problem.removeprefix(f"{ref.name} is "), bad_rows[0].hint) if bad_rows else None


@pytest.mark.parametrize(
    ("data", "what", "way_out"),
    [
        (HEIC, "a HEIC picture", "pip install pillow-heif, or save it as JPEG"),
        (b"\0\0\0\x18ftypavif cut", "an AVIF picture", "pip install 'pillow>=11.3'"),
        (b"\0\0\0\x18ftypisom\0\0\0\0mp41", "a video", "save pictures of it"),
        (b"\x1aE\xdf\xa3 Matroska", "a video", "save pictures of it"),
        (b"%PDF-1.7\n", "a PDF document", "save its pages as PNG"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing", "save it as PNG"),
        (b"\xef\xbb\xbf <svg/>", "an SVG drawing", "save it as PNG"),
        (b"<!DOCTYPE html><html>404", "a web page: the download went wrong", "download the picture again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer, not the picture",
         "run git lfs pull in its repository"),
        (bytes(128) + b"DICM", "a DICOM file", "save its picture as PNG, by the window that a reader would look at"),
        (b"\x93NUMPY\x01", "a NumPy array", "save it as PNG"),
        (b"hello", "not an image", f"known formats: {KNOWN}"),
    ],
)  # fmt: skip
def test_a_file_is_called_by_what_it_is(data, what, way_out, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    formats.register_heic.cache_clear()
    assert problem_of(data) == (what, way_out)


@pytest.mark.parametrize("image_format", ["AVIF", "JPEG2000", "ICO"])
def test_other_known_formats_open(image_format):
    assert features.check("avif") and features.check("jpg_2000")
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, image_format)
    assert problem_of(buffer.getvalue()) is None
    assert open_image(ImageRef(data=buffer.getvalue()), 16).getpixel((8, 8))[0] > 250


class HeicFile(ImageFile.ImageFile):
    """What stands for the reader of the optional library."""

    format = "HEIF"

    def _open(self):
        if self.fp.read()[-1:] != b"\0":
            raise SyntaxError("not what it seems")
        self._size, self._mode, self.tile = (4, 4), "RGB", [("raw", (0, 0, 4, 4), 0, ("RGB", 0, 1))]


@pytest.fixture
def heic_library(monkeypatch):
    def register():
        Image.register_open("HEIF", HeicFile, lambda head: head[4:12] == b"ftypheic")

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    formats.register_heic.cache_clear()
    yield
    formats.register_heic.cache_clear()
    Image.OPEN.pop("HEIF", None)
    if "HEIF" in Image.ID:
        Image.ID.remove("HEIF")
    formats.readable_formats.cache_clear()


def test_heic_opens_where_its_library_is(heic_library):
    assert problem_of(HEIC) is None
    assert open_image(ImageRef(data=HEIC), None).size == (4, 4)


def test_a_damaged_heic_is_not_a_reason_to_install_what_is_there(heic_library):
    assert problem_of(HEIC + b"!") == ("damaged: no HEIC picture is in it", "replace the file")
