"""Metrics of answers that are JSON; one in a fence of Markdown is read too."""

import re
from typing import Any
from unicodedata import normalize

from vlmtune.files import json_value
from vlmtune.metrics.texts import Ratio

_FENCED = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL | re.IGNORECASE)
_ABSENT = object()
Path = tuple[str | int, ...]


def json_valid(answer: str, expected: str) -> Ratio:
    """Whether the answer is JSON."""
    return float(parsed(answer) is not _ABSENT), 1.0


def json_fields(answer: str, expected: str) -> Ratio:
    """Share of the expected fields, nested ones by their path, that the answer has with the same value."""
    wanted, answered = _fields(parsed(expected)), _fields(parsed(answer))
    return sum(_is_same(answered.get(path, _ABSENT), value) for path, value in wanted.items()) / len(wanted), 1.0


def not_json(expected: str) -> str | None:
    """Return why an expected answer cannot be compared as JSON."""
    return "is not JSON" if parsed(expected) is _ABSENT else None


def parsed(text: str) -> Any:
    """Return the value that a text is, `_ABSENT` where it is no JSON."""
    fenced = _FENCED.fullmatch(text.strip())
    try:
        return json_value(fenced[1] if fenced else text)
    except ValueError:
        return _ABSENT


def _fields(value: Any) -> dict[Path, Any]:
    """Return path -> value of everything that holds nothing more; JSON may be nested as deeply as Python recurses."""
    found: dict[Path, Any] = {}
    left: list[tuple[Path, Any]] = [((), value)]
    while left:
        path, value = left.pop()
        if value and isinstance(value, dict | list):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            left += [((*path, key), item) for key, item in pairs]
        else:
            found[path] = value
    return found


def _is_same(answered: Any, wanted: Any) -> bool:
    """Whether two values agree: texts as for `exact`, numbers by their value; true is not 1."""
    if isinstance(wanted, str) and isinstance(answered, str):
        return normalize("NFC", answered.strip()) == normalize("NFC", wanted.strip())
    return isinstance(wanted, bool) == isinstance(answered, bool) and answered == wanted
