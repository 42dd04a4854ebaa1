"""What looks like an image, another medium or a turn and is not used: never left out in silence.

Columns are judged by their names and values, texts by the marks that other tools know images by. What is empty is
nothing, and columns that only say where a row comes from stay a quiet line.
"""

import os
import re
from collections.abc import Callable, Collection
from functools import lru_cache

from vlmtune.data.types import ImageRef, Role, RowProblem, shortened

_MEDIA = re.compile(r"(video|audio|speech|sound|movie|voice)s?(_?\d+)?(_?(path|file|url|uri|bytes|data))?s?")
_PICTURE = re.compile(
    r"(image|img|photo|picture|pic|screenshot)s?(_?\d+)?(_?(path|file|url|uri|bytes|base64|b64|data))?s?"
)
_TURNS = ("history", "conversation", "dialog", "dialogue", "dialogues", "chat", "turns", "texts", "contents")
_TURN_KEYS = ({"role", "content"}, {"from", "value"}, {"user", "assistant"}, {"human", "gpt"})
_ORIGIN = re.compile(r"(id|key|uid|name|dataset|split|meta|metadata|license|__key__|.*(url|link|source|origin))s?")
"""Columns that say where a row or its picture comes from."""
_PICTURE_FILES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif")
_MEDIA_FILES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".wav", ".mp3", ".flac", ".ogg", ".m4a")
_PICTURE_STARTS = ("data:image/", "iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")
_PICTURE_BYTES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM")
_MARK = re.compile(
    r"<(?:video|audio|speech|sound|image(?:[ _-]?\d+)?|img(?:[ _-]?\d+)?|image_?here|image[_-]?placeholder"
    r"|image_soft_token|start_of_image|image_pad|__image__|__media__)>"
    r"|</img>|<\|(?:image|video|audio|vision|img)[a-z_]*(?:_?\d+)?\|>|\[(?:img|image|video|audio)(?:[-_ ]?\d+)?\]",
    re.IGNORECASE,
)
"""What other tools and models know images, videos and sounds by."""
_BOX_MARKS = ("<bbox>", "<ref-object>")
EMPTY = ("", b"", [], {})
_WAY_OUT = "remove the column, or these rows"


def refuse_unread(row: dict, unused: Collection[str], images: list[ImageRef]) -> None:
    """Raise `RowProblem` where a column that is not used holds what should be; `images` are those of the row."""
    for name in unused:
        value = row[name]
        if isinstance(value, int | float) or value in EMPTY:
            if (name == "weight" and value != 1) or (name in ("loss", "train") and value is False):
                raise RowProblem(f"{name} of the whole row is {value}", "leave such rows out, or write it into turns")
            continue
        kind = _kind_by_name(name)
        if kind == "media" or (kind is None and _holds(value, _is_media_file)):
            raise RowProblem(f"{shortened(name)} holds a video or sound, and only images are read", _WAY_OUT)
        if kind == "turns" or (kind is None and _is_turns(value)):
            hint = "write the whole conversation into messages, or remove the column"
            raise RowProblem(f"{shortened(name)} looks like turns, and is not used", hint)
        if kind == "picture" or (kind is None and _holds(value, _is_picture)):
            if not _is_origin(name, value, images):
                hint = 'put all pictures of a row into one list, "images", or remove the column'
                raise RowProblem(f"{shortened(name)} looks like an image, and is not used", hint)


def refuse_mark(text: str, label: str, role: Role, has_objects: bool) -> None:
    """Raise `RowProblem` where the text of a turn holds a mark that other tools put a medium or a box for."""
    # Answers and tools may write such a tag: pages, code.
    if role in ("user", "system") and (mark := _MARK.search(text)):
        hint = "write <image> where an image of the image column goes; videos and sounds are not read"
        raise RowProblem(f"{label} holds {mark[0]}, which stands for nothing here", hint)
    if not has_objects and (box := next((mark for mark in _BOX_MARKS if mark in text), None)):
        hint = "write the boxes into the text, or a column objects beside it"
        raise RowProblem(f"{label} holds {box}, and the row has no objects", hint)


@lru_cache(maxsize=1024)
def _kind_by_name(name: str) -> str | None:
    """Return what a column's name says that it holds; "origin" where its value says nothing, None where it does."""
    low = name.lower()
    if _MEDIA.fullmatch(low):
        return "media"
    if _PICTURE.fullmatch(low):
        return "picture"
    if low in _TURNS:
        return "turns"
    return "origin" if _ORIGIN.fullmatch(low) else None


def _holds(value: object, is_one: Callable[[object], bool]) -> bool:
    return any(map(is_one, value[:4])) if isinstance(value, list) else is_one(value)


def _is_media_file(value: object) -> bool:
    return isinstance(value, str) and len(value) < 1000 and value[-5:].lower().endswith(_MEDIA_FILES)


def _is_picture(value: object) -> bool:
    if isinstance(value, str):
        return value[-5:].lower().endswith(_PICTURE_FILES) and len(value) < 1000 or _is_base64(value)
    if isinstance(value, dict):
        return isinstance(value.get("bytes"), bytes) or _is_picture(value.get("path"))
    return isinstance(value, bytes) and value.startswith(_PICTURE_BYTES)


def _is_base64(value: str) -> bool:
    return value.startswith(_PICTURE_STARTS) and len(value) > 64


def _is_turns(value: object) -> bool:
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and any(keys <= first.keys() for keys in _TURN_KEYS)


def _is_origin(name: str, value: object, images: list[ImageRef]) -> bool:
    """Return whether the value is only a name or an address of a picture that the row has already."""
    if not isinstance(value, str) or not images or _is_base64(value):
        return False
    if name.lower().endswith(("url", "uri")) and value.startswith(("http://", "https://")):
        return True
    named = {os.path.basename(image.path or image.url or "") for image in images}
    return "" in named or os.path.basename(value) in named
