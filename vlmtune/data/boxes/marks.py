"""Boxes inside texts, as rows hold them until the model is known: between characters that Unicode keeps from texts."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

START, END, NAME_START, NAME_END = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
_BOX = re.compile(f"{START}([^{END}]*){END}")
_NAME = re.compile(f"{NAME_START}([^{NAME_END}]*){NAME_END}")
_PIXELS, _SHARES = "p", "s"


@dataclass(frozen=True)
class Box:
    """A box or a point in one picture of a row."""

    image: int
    """Its picture's number in the row, from 0."""
    numbers: tuple[float, ...]
    """x1, y1, x2, y2, or x, y."""
    in_pixels: bool
    """Whether they are pixels of the picture as it is shown; else shares of its width and height."""

    @property
    def mark(self) -> str:
        """How a text holds it."""
        unit = _PIXELS if self.in_pixels else _SHARES
        return f"{START}{self.image},{unit},{','.join(map(repr, self.numbers))}{END}"

    def shares(self, size_px: tuple[int, int]) -> tuple[float, ...]:
        """Its numbers as shares of width and height of a picture of this size, none below 0 or over 1."""
        sides = size_px if self.in_pixels else (1, 1)
        return tuple(min(1.0, max(0.0, number / sides[place % 2])) for place, number in enumerate(self.numbers))

    def is_outside(self, size_px: tuple[int, int], tolerance: float) -> bool:
        """Whether it reaches beyond a picture of this size by more than a share of it."""
        if not self.in_pixels:
            return False
        limits = [side_px * (1 + tolerance) for side_px in size_px]
        return any(number > limits[place % 2] or number < 0 for place, number in enumerate(self.numbers))


def name_mark(name: str) -> str:
    """How a text holds the name of what is in a box."""
    return f"{NAME_START}{name}{NAME_END}"


def has_marks(text: str) -> bool:
    """Whether a text holds a box or the name of one."""
    return START in text or NAME_START in text


def boxes_in(text: str) -> Iterable[Box]:
    """The boxes of a text, in their order."""
    return map(_box, _BOX.finditer(text))


def replaced(text: str, box: Callable[[Box], str], name: Callable[[str], str]) -> str:
    """The text with its marks replaced."""
    return _NAME.sub(lambda found: name(found[1]), _BOX.sub(lambda found: box(_box(found)), text))


def _box(found: re.Match) -> Box:
    image, unit, *numbers = found[1].split(",")
    return Box(int(image), tuple(map(float, numbers)), unit == _PIXELS)
