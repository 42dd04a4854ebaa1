"""How models write a box in a picture, and the name of what is in it: each as its own training data had it.

Coordinates: x to the right and y down, from the upper left corner of the picture as it is shown; a box is its upper
left and its lower right corner, a point one pair.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


def in_brackets(numbers: Sequence[int]) -> str:
    """`[x1, y1, x2, y2]`."""
    return f"[{', '.join(map(str, numbers))}]"


def in_pairs(numbers: Sequence[int]) -> str:
    """`(x1,y1),(x2,y2)`."""
    return ",".join(f"({x},{y})" for x, y in zip(numbers[::2], numbers[1::2], strict=True))


def as_location_tokens(numbers: Sequence[int]) -> str:
    """`<locY1><locX1><locY2><locX2>`, four digits each."""
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    return "".join(f"<loc{number:04}>" for x, y in pairs for number in (y, x))


@dataclass(frozen=True)
class BoxConvention:
    """How one model writes boxes."""

    name: str
    says: str
    """For people: what a box looks like, and what its numbers are."""
    numbers: Callable[[Sequence[int]], str] = in_brackets
    """x1, y1, x2, y2 (or x, y) -> text."""
    around_box: tuple[str, str] = ("", "")
    around_name: tuple[str, str] = ("", "")
    steps: int = 1000
    """Numbers go from 0 to this over the width, and over the height."""
    highest: int = 1000
    """No number is over this."""
    input_size_px: Callable[[Mapping[str, Any], int, int], tuple[int, int]] | None = None
    """(preprocessor config, width_px, height_px) -> the size in whose pixels numbers are; None: in `steps`."""

    def box(self, shares: Sequence[float], size_px: tuple[int, int]) -> str:
        """Write a box, or a point, given as shares of width and height; `size_px` is the picture's for the model."""
        is_in_pixels = self.input_size_px is not None
        steps = size_px if is_in_pixels else (self.steps, self.steps)
        highest = size_px if is_in_pixels else (self.highest, self.highest)
        numbers = [min(highest[place % 2], round(share * steps[place % 2])) for place, share in enumerate(shares)]
        return f"{self.around_box[0]}{self.numbers(numbers)}{self.around_box[1]}"

    def named(self, name: str) -> str:
        """Write the name of what is in a box."""
        return f"{self.around_name[0]}{name}{self.around_name[1]}"


THOUSANDTHS = BoxConvention("thousandths", "[x1, y1, x2, y2], 0 to 1000 over width and height")
"""Of models that were not trained on boxes, or whose convention is not known here; Qwen3-VL's own is the same."""
QWEN_VL = BoxConvention(
    "qwen_vl",
    "<ref>name</ref><box>(x1,y1),(x2,y2)</box>, 0 to 999 over width and height",
    in_pairs,
    ("<box>", "</box>"),
    ("<ref>", "</ref>"),
    highest=999,
)
QWEN2_VL = BoxConvention(
    "qwen2_vl",
    "<|object_ref_start|>name<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>, 0 to 999 over width and height",
    in_pairs,
    ("<|box_start|>", "<|box_end|>"),
    ("<|object_ref_start|>", "<|object_ref_end|>"),
    highest=999,
)
PALIGEMMA = BoxConvention(
    "paligemma",
    "<locY1><locX1><locY2><locX2>, 0000 to 1023 over height and width",
    as_location_tokens,
    steps=1024,
    highest=1023,
)
INTERNVL = BoxConvention(
    "internvl",
    "<ref>name</ref><box>[[x1, y1, x2, y2]]</box>, 0 to 1000 over width and height",
    around_box=("<box>[", "]</box>"),
    around_name=("<ref>", "</ref>"),
)
OF_MODEL_TYPES = {"internvl": INTERNVL}
"""Of models without a family of their own."""
