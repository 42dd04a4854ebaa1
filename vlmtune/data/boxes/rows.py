"""A row as it was read -> the same row with marks in place of its boxes."""

from collections.abc import Iterator
from dataclasses import replace

from vlmtune.data.boxes.marks import END, NAME_END, NAME_START, START, has_marks
from vlmtune.data.boxes.objects import filled, has_places
from vlmtune.data.boxes.texts import marked, may_hold_boxes, with_marked_names
from vlmtune.data.types import RowProblem, Sample, Turn

_RESERVED = (START, END, NAME_START, NAME_END)


def with_marks(sample: Sample, objects: object) -> tuple[Sample, bool]:
    """The row with marks for its boxes, and whether `objects`, its column of that name, was used for them.

    Raises:
        RowProblem: boxes that do not fit their places, or are none.
    """
    texts = [part for turn in sample.turns for part in turn.parts if isinstance(part, str)]
    if any(map(_holds_reserved, (*texts, *sample.accepted))):
        raise RowProblem("a text holds what is no character: U+FDD0 to U+FDD3", "remove it")
    if objects is not None and any(map(has_places, texts)):
        return _with_texts(sample, filled(texts, objects, len(sample.images))), True
    if any(map(may_hold_boxes, (*texts, *sample.accepted))) and sample.images:
        found = [marked(text, image) for text, image in _with_image_before(sample)]
        accepted = [marked(text, len(sample.images) - 1) for text in sample.accepted]
        if any(map(has_marks, (*found, *accepted))):
            sample = replace(sample, accepted=tuple(map(with_marked_names, accepted)))
            return _with_texts(sample, [with_marked_names(text) for text in found]), False
    return sample, False


def _holds_reserved(text: str) -> bool:
    return not text.isascii() and any(mark in text for mark in _RESERVED)


def _with_image_before(sample: Sample) -> Iterator[tuple[str, int]]:
    """Each text with the number of the last image before it, the first where none is."""
    num_images = 0
    for turn in sample.turns:
        for part in turn.parts:
            if isinstance(part, str):
                yield part, max(0, num_images - 1)
            else:
                num_images += 1


def _with_texts(sample: Sample, texts: list[str]) -> Sample:
    rest = iter(texts)

    def turn_with(turn: Turn) -> Turn:
        return replace(turn, parts=tuple(next(rest) if isinstance(part, str) else part for part in turn.parts))

    return replace(sample, turns=tuple(map(turn_with, sample.turns)))
