"""Rows with boxes -> the same rows as one model reads and writes them, each when it is asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, overload

from vlmtune.data.boxes.marks import Box, has_marks, replaced
from vlmtune.data.images import image_size_px, shrunk_size_px
from vlmtune.data.types import Sample, SamplesOnDisk, Turn
from vlmtune.errors import VlmtuneError
from vlmtune.families.boxes import BoxConvention

if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from vlmtune.families.base import Family
    from vlmtune.hub.source import ModelSource
    from vlmtune.plan.types import RunPlan


@dataclass(frozen=True)
class BoxWriter:
    """Writes boxes into the texts of rows, in the convention of one model."""

    convention: BoxConvention
    image_size: int | None
    """`data.image_size`."""
    preprocessor: dict[str, Any]
    """The settings of the image processor."""

    @property
    def identity(self) -> list:
        """What decides how boxes are written, as JSON values."""
        return [self.convention.name, self.image_size, self.preprocessor]

    def __call__(self, sample: Sample, sizes_px: Sequence[tuple[int, int]] | None = None) -> Sample:
        """Return the row with its boxes written; its pictures' headers are read where `sizes_px` does not say theirs.

        Raises:
            VlmtuneError: a picture cannot be opened.
        """
        if not has_boxes(sample):
            return sample
        images = sample.images

        @cache
        def size_px(image: int) -> tuple[int, int]:
            return image_size_px(images[image]) if sizes_px is None else sizes_px[image]

        def written(box: Box) -> str:
            original_px = size_px(box.image) if box.in_pixels or self.convention.input_size_px else (1, 1)
            return self.convention.box(box.shares(original_px), self.seen_size_px(original_px))

        try:
            turns = tuple(self._turn(turn, written) for turn in sample.turns)
        except VlmtuneError as error:
            raise VlmtuneError(f"{sample.where}: {error.message}", error.hint) from None
        return replace(sample, turns=turns, accepted=tuple(self._text(text, written) for text in sample.accepted))

    def seen_size_px(self, original_px: tuple[int, int]) -> tuple[int, int]:
        """Return the size in whose pixels the model's numbers are, of a picture of this size."""
        if self.convention.input_size_px is None:
            return original_px
        return self.convention.input_size_px(self.preprocessor, *shrunk_size_px(original_px, self.image_size))

    def _turn(self, turn: Turn, written: Callable[[Box], str]) -> Turn:
        if not has_marks(turn.text):
            return turn
        parts = (self._text(part, written) if isinstance(part, str) else part for part in turn.parts)
        return replace(turn, parts=tuple(parts))

    def _text(self, text: str, written: Callable[[Box], str]) -> str:
        return replaced(text, written, self.convention.named)


def num_with_boxes(samples: Sequence[Sample]) -> int:
    """Return how many rows hold boxes that are still to be written."""
    return samples.num_with_boxes if isinstance(samples, SamplesOnDisk) else sum(map(has_boxes, samples))


def has_boxes(sample: Sample) -> bool:
    """Return whether a row holds boxes, or names of them, that are still to be written."""
    return any(map(has_marks, (*(turn.text for turn in sample.turns), *sample.accepted)))


def writer_for(plan: "RunPlan", source: "ModelSource") -> BoxWriter:
    """Return what writes boxes as the model of a plan does, by its files."""
    convention = source.facts(plan.model_name).family.box_convention(plan.boxes)
    return BoxWriter(convention, plan.image_size, plan.preprocessor(source.preprocessor))


def writer_of(plan: "RunPlan", processor: "ProcessorMixin", family: "Family") -> BoxWriter:
    """Return what writes boxes as the model of a plan does, with the processor as the plan sets it."""
    return BoxWriter(family.box_convention(plan.boxes), plan.image_size, processor.image_processor.to_dict())


def written(
    samples: Sequence[Sample], plan: "RunPlan", processor: "ProcessorMixin", family: "Family"
) -> Sequence[Sample]:
    """Return rows as the model of a plan reads and writes them; the same object where none holds boxes."""
    if isinstance(samples, SamplesOnDisk):
        return samples.written(writer_of(plan, processor, family)) if samples.num_with_boxes else samples
    if isinstance(samples, WrittenSamples) or not any(map(has_boxes, samples)):
        return samples
    return WrittenSamples(samples, writer_of(plan, processor, family))


class WrittenSamples(Sequence[Sample]):
    """Rows in memory whose boxes are written when a row is asked for."""

    def __init__(self, samples: Sequence[Sample], writer: BoxWriter) -> None:
        self.samples = samples
        self.writer = writer

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self.writer(sample) for sample in self.samples[index]]
        return self.writer(self.samples[index])
