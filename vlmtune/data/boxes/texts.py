"""Boxes that texts hold in the convention of one model, where it is beyond doubt -> marks, so that every model can.

Qwen-VL `<box>(x1,y1),(x2,y2)</box>`, Qwen2-VL `<|box_start|>(x1,y1),(x2,y2)<|box_end|>`, both in thousandths, and
PaliGemma `<locY1><locX1><locY2><locX2>`, in steps of 1/1024. Bare lists of numbers may mean anything: they stay.
"""

import re

from vlmtune.data.boxes.marks import Box, name_mark

_HINTS = ("<box>", "<|box_start|>", "<loc")
_PAIRS = r"\(\s*\d+\s*,\s*\d+\s*\)"
_TAGGED = re.compile(rf"(?:<box>|<\|box_start\|>)\s*({_PAIRS}(?:\s*,\s*{_PAIRS})?)\s*(?:</box>|<\|box_end\|>)")
_LOCATIONS = re.compile(r"(?:<loc\d{4}>){4}")
_NAMES = re.compile(r"<ref>(.*?)</ref>|<\|object_ref_start\|>(.*?)<\|object_ref_end\|>", re.DOTALL)
_NUMBER = re.compile(r"\d+")
_ANY_NUMBER = r"\s*\d+(?:\.\d+)?\s*"
_FOUR = re.compile(rf"\[({_ANY_NUMBER}(?:,{_ANY_NUMBER}){{3}})\]")


def may_hold_boxes(text: str) -> bool:
    """Whether it is worth looking for boxes in a text."""
    return "<" in text and any(hint in text for hint in _HINTS)


def marked(text: str, image: int) -> str:
    """A text with marks for its boxes, which are in picture number `image` of the row."""

    def tagged(found: re.Match) -> str:
        return _mark(found[0], [int(number) for number in _NUMBER.findall(found[1])], 1000)

    def located(found: re.Match) -> str:
        y1, x1, y2, x2 = map(int, _NUMBER.findall(found[0]))
        return _mark(found[0], [x1, y1, x2, y2], 1024)

    def _mark(written: str, numbers: list[int], steps: int) -> str:
        shares = tuple(number / steps for number in numbers)
        return Box(image, shares, in_pixels=False).mark if max(shares) <= 1 else written

    return _LOCATIONS.sub(located, _TAGGED.sub(tagged, text))


def with_marked_names(text: str) -> str:
    """A text with marks for the names of what is in boxes; for texts of rows that hold boxes."""
    return _NAMES.sub(lambda found: name_mark(found[1] or found[2] or ""), text)


def lists_of_four(text: str) -> list[str]:
    """The insides of lists of four numbers in a text, such as `10, 20, 300, 400`."""
    return _FOUR.findall(text) if "[" in text else []
