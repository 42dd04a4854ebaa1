"""The column `objects` -> boxes in texts, as ms-swift writes such rows.

`{"ref": ["cat"], "bbox": [[x1, y1, x2, y2]]}`: each `<ref-object>` of the row's texts stands for the next name, each
`<bbox>` for the next box. A box of two numbers is a point. Numbers are pixels of the picture as it is shown, or by
`bbox_type` shares of it; `image_id` says for each box which of the row's images it is in, the first where nothing does.
"""

import math
import re

from vlmtune.data.boxes.marks import Box, name_mark
from vlmtune.data.types import RowProblem, count, kind_of, shortened
from vlmtune.files import json_value

COLUMN = "objects"
_NAME, _BOX = "<ref-object>", "<bbox>"
_PLACES = re.compile(f"{_NAME}|{_BOX}")
_STEPS = {"norm1": 1.0, "norm_1": 1.0, "norm1000": 1000.0, "norm_1000": 1000.0}
"""Values of `bbox_type` besides `real` -> what stands for the whole width and height."""
_KEYS = ("ref", "bbox", "bbox_type", "image_id", "width", "height")
_HINT = (
    'a right column: "objects": {"ref": ["cat"], "bbox": [[10, 20, 300, 400]]}, '
    "with <ref-object> and <bbox> where they go"
)
_HINT_CORNERS = "a box is x1, y1, x2, y2: its upper left and its lower right corner (COCO's are x, y, width, height)"


def has_places(text: str) -> bool:
    """Whether a text has a place for a name or a box."""
    return _BOX in text or _NAME in text


def filled(texts: list[str], objects: object, num_images: int) -> list[str]:
    """The texts of a row, in their order, with the names and boxes of its `objects` in their places.

    Raises:
        RowProblem: objects that do not fit their places, or are none.
    """
    objects = _parsed(objects)
    names, boxes = _names(objects.get("ref")), _boxes(objects, num_images)
    for what, place, held in (("name", _NAME, names), ("box", _BOX, boxes)):
        num_places = sum(text.count(place) for text in texts)
        if num_places not in (0, len(held)):  # names alone, or boxes alone, may be asked for
            many = f"{len(held)} boxes" if what == "box" and len(held) != 1 else count(len(held), what)
            raise RowProblem(f"{COLUMN} has {many} for {count(num_places, place)} in the texts", _HINT)
    next_name, next_box = iter(names), iter(boxes)

    def written(found: re.Match) -> str:
        return name_mark(next(next_name)) if found[0] == _NAME else next(next_box).mark

    return [_PLACES.sub(written, text) for text in texts]


def _parsed(objects: object) -> dict:
    if isinstance(objects, str):
        try:
            objects = json_value(objects)
        except ValueError:
            raise RowProblem(f"{COLUMN} is not valid JSON", _HINT) from None
    if not isinstance(objects, dict):
        raise RowProblem(f"{COLUMN} is {kind_of(objects)} where an object is expected", _HINT)
    if unknown := [key for key, value in objects.items() if key not in _KEYS and value is not None]:
        raise RowProblem(f"{COLUMN} has the key {shortened(unknown[0])}, known are {', '.join(_KEYS)}", _HINT)
    return objects


def _names(names: object) -> list[str]:
    if names is None:
        return []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RowProblem(f"{COLUMN}: ref is no list of strings", _HINT)
    return names


def _boxes(objects: dict, num_images: int) -> list[Box]:
    boxes, kind = objects.get("bbox"), objects.get("bbox_type") or "real"
    if boxes is None:
        return []
    if not isinstance(boxes, list):
        raise RowProblem(f"{COLUMN}: bbox is {kind_of(boxes)} where a list of boxes is expected", _HINT)
    if kind != "real" and kind not in _STEPS:
        known = ", ".join(("real", *_STEPS))
        raise RowProblem(f"{COLUMN}: bbox_type is {shortened(str(kind))}", f"known: {known}")
    images = _images(objects.get("image_id"), len(boxes), num_images)
    sides = _sides(objects, num_images) if kind == "real" else [(_STEPS[kind],) * 2] * num_images
    return [
        _box(number, box, image, sides[image] if sides else None)
        for number, (box, image) in enumerate(zip(boxes, images, strict=True), 1)
    ]


def _images(value: object, num_boxes: int, num_images: int) -> list[int]:
    """The picture of each box."""
    if num_boxes and not num_images:
        raise RowProblem(f"{COLUMN} has boxes, and the row no image", "add the image, or remove the boxes")
    images = value if isinstance(value, list) and value else [0] * num_boxes
    if len(images) != num_boxes or not all(isinstance(one, int) and 0 <= one < num_images for one in images):
        raise RowProblem(
            f"{COLUMN}: image_id is not the number of an image for each box",
            f"{count(num_boxes, 'number')} from 0 to {num_images - 1}, or leave it out: the boxes are in the first",
        )
    return images


def _sides(objects: dict, num_images: int) -> list[tuple[float, float]] | None:
    """Width and height of each picture as the boxes were drawn on it, where the row says them."""
    widths, heights = objects.get("width"), objects.get("height")
    if widths is None or heights is None:
        return None
    widths, heights = (side if isinstance(side, list) else [side] for side in (widths, heights))
    sides = list(zip(widths, heights, strict=False))
    if len(sides) < num_images or not all(_is_number(side) and side > 0 for pair in sides for side in pair):
        raise RowProblem(f"{COLUMN}: width and height are not those of each image", _HINT)
    return sides


def _box(number: int, box: object, image: int, sides: tuple[float, float] | None) -> Box:
    if not isinstance(box, list) or len(box) not in (2, 4) or not all(map(_is_number, box)):
        raise RowProblem(f"{COLUMN}: box {number} is no list of 2 or 4 numbers", _HINT_CORNERS)
    if len(box) == 4 and (box[2] < box[0] or box[3] < box[1]):
        raise RowProblem(f"{COLUMN}: box {number}, {box}, ends before it begins", _HINT_CORNERS)
    if sides is None:
        return Box(image, tuple(map(float, box)), in_pixels=True)
    shares = tuple(one / sides[place % 2] for place, one in enumerate(box))
    if any(not 0 <= share <= 1 for share in shares):
        raise RowProblem(f"{COLUMN}: box {number}, {box}, lies outside its picture", "bbox_type says what numbers mean")
    return Box(image, shares, in_pixels=False)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
