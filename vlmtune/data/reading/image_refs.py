"""Image values as rows write them -> `ImageRef`: paths, addresses, data URIs, base64, bytes, objects around them."""

import base64
import binascii
import os
import re
from dataclasses import dataclass
from urllib.parse import unquote

from vlmtune.data.types import ImageRef, RowProblem, kind_of, shortened

IMAGE_KEYS = ("bytes", "base64", "image", "image_url", "path", "url")
"""Keys of an object that may hold the image, the one that wins first."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_BASE64_STARTS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")  # PNG, JPEG, GIF, WebP
_MIN_BASE64_CHARS = 64  # shorter than any real image, longer than the paths that begin like one
_HINT = 'write a path, such as "image": "photos/1.jpg"'


@dataclass(frozen=True, slots=True)
class ImageRules:
    """How the image values of one data file are read."""

    base_dir: str
    """Absolute folder that relative paths start from."""
    allow_urls: bool


def image_refs(column: object, rules: ImageRules) -> list[ImageRef]:
    """The images of an image column: one value or a list of values."""
    values = column if isinstance(column, list) else [column]
    return [image_ref(value, f"image {number}", rules) for number, value in enumerate(values, 1)]


def image_ref(value: object, label: str, rules: ImageRules) -> ImageRef:
    """One image value, `label` naming it in messages."""
    for _ in range(3):  # {"image_url": {"url": "a.jpg"}} inside a part is the deepest shape in use
        if isinstance(value, dict):
            value = _inner_value(value, label)
    if isinstance(value, bytes) and value:
        return ImageRef(data=value)
    if not isinstance(value, str):
        found = "empty" if value == b"" else kind_of(value)
        raise RowProblem(f"{label} is {found} where a path is expected", _HINT)
    if not value.strip():
        raise RowProblem(f"{label} is an empty string", "leave the column out, or null, in a row without images")
    return _from_text(value, label, rules)


def _inner_value(value: dict, label: str) -> object:
    key = next((key for key in IMAGE_KEYS if value.get(key) is not None), None)
    if key is None:
        raise RowProblem(f"{label} is an object without {', '.join(IMAGE_KEYS[:-1])} or {IMAGE_KEYS[-1]}", _HINT)
    inner = value[key]
    if key in ("bytes", "base64") and isinstance(inner, str):
        return _decoded(inner.partition("base64,")[2] or inner, label)
    return inner


def _from_text(value: str, label: str, rules: ImageRules) -> ImageRef:
    if value.startswith("data:"):
        header, _, payload = value.partition(",")
        if not header.endswith("base64"):
            raise RowProblem(f"{label} is a data: address without base64", "write data:image/png;base64,...")
        return ImageRef(data=_decoded(payload, label))
    if value.startswith(_BASE64_STARTS) and len(value) >= _MIN_BASE64_CHARS:
        return ImageRef(data=_decoded(value, label))
    if value.startswith("file:"):
        value = _path_of(value, label)
    elif scheme := _SCHEME.match(value):
        return _from_address(value, scheme[1].lower(), label, rules)
    if "\0" in value or not is_utf8(value):
        raise RowProblem(f"{label} holds a broken character: {shortened(value)}", _HINT)
    return ImageRef(path=os.path.join(rules.base_dir, value))


def _path_of(address: str, label: str) -> str:
    """The absolute path in a file:/// address."""
    path = address.removeprefix("file:").removeprefix("//").removeprefix("localhost")
    if not path.startswith("/") or path.startswith("//"):
        raise RowProblem(
            f"{label} is a file: address of another machine: {shortened(address)}",
            "write the path alone, or file:/// and the absolute path",
        )
    return unquote(path)


def is_address(ref: str) -> bool:
    """Whether this is the address of a picture and not its absolute path."""
    return bool(_SCHEME.match(ref))


def _from_address(value: str, scheme: str, label: str, rules: ImageRules) -> ImageRef:
    if scheme not in ("http", "https"):
        raise RowProblem(f"{label} is a {scheme}:// address: {shortened(value)}", _HINT)
    if not rules.allow_urls:
        raise RowProblem(
            f"{label} is an address, and nothing is fetched: {shortened(value)}",
            "download the image and write its path, or set data.allow_urls: true",
        )
    return ImageRef(url=value)


def _decoded(text: str, label: str) -> bytes:
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data:
        raise RowProblem(f"{label} is not valid base64", "encode the whole image file, with its = padding")
    return data


def is_utf8(text: str) -> bool:
    """Whether `text` can be written as UTF-8: JSON's \\ud800 escapes make strings that no tokenizer accepts."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
