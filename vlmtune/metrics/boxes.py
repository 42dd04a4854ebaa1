"""Intersection over union of the boxes in texts.

It does not depend on the scale of either axis, so boxes are compared as the model writes them.
"""

import re
from collections.abc import Sequence

from vlmtune.metrics.texts import Ratio

Box = tuple[float, float, float, float]
_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_PAIR = rf"\({_NUMBER},{_NUMBER}\)"
_NOTATIONS = (
    re.compile(r"<loc(\d{4})>" * 4),
    re.compile(rf"{_PAIR}\s*,\s*{_PAIR}"),
    re.compile(rf"\[{','.join([_NUMBER] * 4)}\]"),
)
"""Of every convention in `families/boxes.py`; with locations, x and y change places on both sides."""


def iou(answer: str, expected: str) -> Ratio:
    """Mean intersection over union of the boxes, each beside its best match; one too many or missing counts as 0."""
    notation = _notation(expected)
    wanted, answered = (_boxes(notation, text) if notation else [] for text in (expected, answer))
    return sum(_matched(answered, wanted)), float(max(len(wanted), len(answered), 1))


def no_boxes(expected: str) -> str | None:
    """Return why an expected answer, in which boxes are written, cannot be compared by them."""
    return None if _notation(expected) else "holds no box"


def overlap(one: Box, other: Box) -> float:
    """Return the intersection of two boxes over their union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    union = _area(one) + _area(other) - shared
    return shared / union if union else float(one == other)


def _matched(answered: Sequence[Box], wanted: Sequence[Box]) -> list[float]:
    """Return the overlaps of pairs, the largest first, each box in one pair."""
    pairs = sorted(
        ((overlap(a, w), i, j) for i, a in enumerate(answered) for j, w in enumerate(wanted)),
        key=lambda pair: -pair[0],
    )
    found, used_answered, used_wanted = [], set(), set()
    for value, i, j in pairs:
        if i not in used_answered and j not in used_wanted:
            found.append(value)
            used_answered.add(i)
            used_wanted.add(j)
    return found


def _notation(text: str) -> re.Pattern | None:
    return next((notation for notation in _NOTATIONS if notation.search(text)), None)


def _boxes(notation: re.Pattern, text: str) -> list[Box]:
    return [tuple(map(float, found.groups())) for found in notation.finditer(text)]


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
