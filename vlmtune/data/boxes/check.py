"""Boxes beside their pictures: what lies outside, and bare numbers that do not follow a picture that is shrunk."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from vlmtune.data.boxes.marks import Box, boxes_in
from vlmtune.data.boxes.texts import lists_of_four
from vlmtune.data.boxes.writing import BoxWriter, num_with_boxes
from vlmtune.data.images import image_size_px, shrunk_size_px
from vlmtune.data.types import RowProblem, Sample, SamplesOnDisk, count
from vlmtune.errors import VlmtuneError
from vlmtune.families.boxes import THOUSANDTHS

TOLERANCE = 0.02
"""Share of a picture's side by which a box may reach beyond it: rounding, and the line around it."""
MOST_ROWS = 1000
"""Rows with bare numbers that are compared with their pictures."""
SHOWN = 3
Size = tuple[int, int]
Reading = Callable[[Size], Size]
"""Size of a picture as it is -> the size on which a model reads the numbers of a box in it."""


def outside(texts: Iterable[str], size_px: Callable[[int], Size]) -> RowProblem | None:
    """What is wrong with a row that has a box outside its picture; `size_px` gives the size of its pictures."""
    for text in texts:
        for box in boxes_in(text):
            if box.is_outside(size := size_px(box.image), TOLERANCE):
                return _outside(box, size)
    return None


def _outside(box: Box, size_px: Size) -> RowProblem:
    numbers = ", ".join(f"{number:g}" for number in box.numbers)
    return RowProblem(
        f"the box [{numbers}] lies outside its picture of {size_px[0]}×{size_px[1]} px",
        "boxes are in pixels of the picture as it is shown, EXIF rotation applied; of shares bbox_type tells",
    )


def warning_of_numbers(samples: Sequence[Sample], readings: Sequence[Reading]) -> str | None:
    """Say which rows hold boxes in bare numbers that lie in their picture, and on no size by which a model reads them.

    `readings` give these sizes for the size of a picture; the first is named.
    """
    found = list(islice(_beyond(samples, readings), MOST_ROWS))
    if not found:
        return None
    many = f"{MOST_ROWS:,} rows or more" if len(found) == MOST_ROWS else count(len(found), "row")
    examples = "; ".join(f"{where}: {numbers} on {_by(own)}" for where, numbers, own in found[:SHOWN])
    return (
        f"warning: boxes of {many} are pixels of the whole picture, but the model reads numbers on one of "
        f"{_by(readings[0](found[0][2]))} ({examples}): they are learned as they stand; in a column objects "
        "they would follow the picture"
    )


def _by(size_px: Size) -> str:
    return f"{size_px[0]}×{size_px[1]}"


def _beyond(samples: Sequence[Sample], readings: Sequence[Reading]) -> Iterator[tuple[str, str, Size]]:
    """Yield name, numbers and size of the picture of rows with a box that no reading has within its size."""
    for sample in islice(_with_lists(samples), MOST_ROWS):
        own = image_size_px(sample.images[-1])
        for numbers in (numbers for turn in sample.turns for numbers in lists_of_four(turn.text)):
            values = [float(number) for number in numbers.split(",")]
            if _fits(values, own) and not any(_fits(values, reading(own)) for reading in readings):
                yield sample.where, f"[{numbers}]", own
                break


def _with_lists(samples: Sequence[Sample]) -> Iterator[Sample]:
    """Yield rows with pictures and lists of four numbers in their texts."""
    samples = samples.with_lists() if isinstance(samples, SamplesOnDisk) else samples
    return (one for one in samples if one.images and any(lists_of_four(turn.text) for turn in one.turns))


def _fits(values: Sequence[float], size_px: Size) -> bool:
    return all(value <= size_px[place % 2] * (1 + TOLERANCE) for place, value in enumerate(values))


def told_of_boxes(samples: Sequence[Sample], writer: BoxWriter) -> tuple[str, ...]:
    """Return what people are told of boxes in rows, as read, before training."""
    notes = []
    if number := num_with_boxes(samples):
        notes.append(f"boxes of {count(number, 'row')} are written as {writer.convention.says}")
    steps = writer.convention.steps
    reading = writer.seen_size_px if writer.convention.input_size_px else lambda own_px: (steps, steps)
    if warning := warning_of_numbers(samples, [reading]):
        notes.append(warning)
    return tuple(notes)


def told_without_model(samples: Sequence[Sample], image_size: int | None) -> tuple[str, ...]:
    """Return what is sure for every model: numbers over 1000 that are no pixels of the shrunk picture either."""
    readings = [lambda own_px: shrunk_size_px(own_px, image_size), lambda own_px: (THOUSANDTHS.steps,) * 2]
    warning = warning_of_numbers(samples, readings)
    return (warning,) if warning else ()


def refuse_turned_boxes(samples: Sequence[Sample]) -> None:
    """Raise where pictures are to be turned and rows hold boxes in them."""
    if number := num_with_boxes(samples):
        raise VlmtuneError(
            f"data.augment.rotation: {number:,} of {count(len(samples), 'row')} hold boxes, which do not turn with "
            "their picture",
            "leave rotation out: color_jitter and jpeg_quality move nothing",
        )
