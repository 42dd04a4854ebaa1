"""Thumbnails: small, of pictures that are there; a place and a reason for the others."""

import base64
import io
import struct
import zlib

import pytest
from PIL import Image
from tiny.rows import picture

from vlmtune.data.pictures import thumbnails
from vlmtune.data.pictures.thumbnails import A_ROW, SIDE_PX, pictures_of_rows, thumbnail
from vlmtune.data.types import ImageRef


def opened(shown) -> Image.Image:
    head, _, text = shown.uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_a_picture_becomes_a_small_jpeg_and_keeps_its_form(tmp_path):
    shown = thumbnail(picture(tmp_path, "cat", (1200, 600), "red"))
    image = opened(shown)
    assert image.format == "JPEG" and image.size == (SIDE_PX, SIDE_PX // 2) and image.getpixel((9, 9))[0] > 240
    assert shown.name == "cat.png", "without the folders of this machine"
    assert opened(thumbnail(picture(tmp_path, "thin", (9000, 1), "red"))).size == (SIDE_PX, 1)


def test_a_picture_inside_of_a_row_is_shown():
    file = io.BytesIO()
    Image.new("LA", (8, 8)).save(file, "PNG")
    assert opened(thumbnail(ImageRef(data=file.getvalue()))).size == (8, 8)


def huge_png() -> bytes:
    """The header of a picture with 3.6 thousand million pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + bytes(64)


@pytest.mark.parametrize("content", [None, b"", b"no picture", b"\xff\xd8\xff\xe0cut", huge_png()])
def test_what_cannot_be_opened_has_a_place_and_a_reason(tmp_path, content):
    path = tmp_path / "cat.png"
    if content is not None:
        path.write_bytes(content)
    shown = thumbnail(ImageRef(path=str(path)))
    assert (shown.name, shown.uri, shown.why) == ("cat.png", "", "cannot be opened")


def test_many_pictures_of_a_row_are_counted(tmp_path):
    refs = [picture(tmp_path, f"cat{number}", (20, 20), "red") for number in range(A_ROW + 3)]
    shown = pictures_of_rows({7: refs, 9: []})
    assert [bool(one.uri) for one in shown[7]] == [True] * A_ROW + [False] and shown[9] == []
    assert (shown[7][-1].name, shown[7][-1].why) == ("3 more", "not shown")


def test_a_page_has_room_for_so_many_bytes(tmp_path, monkeypatch):
    ref = picture(tmp_path, "cat", (20, 20), "red")
    monkeypatch.setattr(thumbnails, "ALL_BYTES", len(thumbnail(ref).uri) + 1)
    shown = pictures_of_rows({row: [ref] for row in range(3)})
    assert [bool(one.uri) for [one] in shown.values()] == [True, True, False]
    assert shown[2][0].why == "no room on this page"
