"""How long rows are before any image is decoded: measured once, counted for as many plans as are looked at."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image
from transformers import ProcessorMixin

from vlmtune.data.boxes.writing import written
from vlmtune.data.encode import encode, render
from vlmtune.data.images import image_size_px, shrunk_size_px
from vlmtune.data.measure.counting import MAX_PROBLEMS, PROBE, misfits, question_text, text_tokens
from vlmtune.data.progress import Progress
from vlmtune.data.types import Sample, SamplesOnDisk
from vlmtune.errors import VlmtuneError
from vlmtune.families.base import Family, RefusedImage
from vlmtune.families.facts import ModelFacts
from vlmtune.hub.source import ModelSource
from vlmtune.plan.types import RunPlan

PROBE_SIZE_PX = (320, 240)
SIDE_BITS = 32


@dataclass(frozen=True)
class Lengths:
    """Tokens of each row under one plan, [N] each."""

    samples: Sequence[Sample] = field(repr=False)
    text: np.ndarray
    image: np.ndarray

    def __len__(self) -> int:
        return len(self.text)

    @cached_property
    def total(self) -> np.ndarray:
        """All tokens of each row."""
        return self.text + self.image

    def where(self, index: int) -> str:
        """Return the name of a row."""
        return self.samples[index].where

    def longest(self) -> int:
        """Return the number of the longest row, the first of equals."""
        return int(self.total.argmax())

    def most_pixels(self) -> int:
        """Return the number of the row with the most image tokens, the longest where there are none."""
        return int(self.image.argmax()) if self.image.any() else self.longest()


@dataclass(frozen=True)
class Measures:
    """What N rows with M images have under every plan of a model: text tokens, and the sizes of their images."""

    samples: Sequence[Sample] = field(repr=False)
    text: np.ndarray
    """Text tokens of each row, [N]."""
    num_images: np.ndarray
    """Images of each row, [N]."""
    size_of_image: np.ndarray
    """Place of each image's size in `sizes_px`, row after row, [M]."""
    sizes_px: tuple[tuple[int, int], ...]
    """Every size that an image has, once: width and height as shown, not yet shrunk."""

    def lengths(self, plan: RunPlan, family: Family, source: ModelSource) -> Lengths:
        """Return the tokens of each row under `plan`; nothing is read or rendered.

        Raises:
            VlmtuneError: images of sizes that the model's processor refuses, their rows named.
        """
        tokens_of_size, refused = _counted(self.sizes_px, plan, family, source)
        if problems := self._rows_with(refused, plan):
            raise misfits(list(problems.values()), len(problems), len(self.samples))
        tokens_until = np.concatenate([[0], np.cumsum(np.array(tokens_of_size, np.int64)[self.size_of_image])])
        ends = np.cumsum(self.num_images, dtype=np.int64)
        image = tokens_until[ends] - tokens_until[ends - self.num_images]
        return Lengths(self.samples, self.text, image.astype(np.int32))

    def refused_rows(self, plan: RunPlan, family: Family, source: ModelSource) -> dict[int, VlmtuneError]:
        """Return the number of each row with an image that the model's processor refuses under `plan`, and why."""
        return self._rows_with(_counted(self.sizes_px, plan, family, source)[1], plan)

    def _rows_with(self, refused: dict[int, RefusedImage], plan: RunPlan) -> dict[int, VlmtuneError]:
        """Return the number of each row with an image of a refused size, by its place in `sizes_px`, and the error."""
        if not refused:
            return {}
        images = np.flatnonzero(np.isin(self.size_of_image, list(refused)))
        rows = np.searchsorted(np.cumsum(self.num_images), images, side="right")
        problems: dict[int, VlmtuneError] = {}
        for row, place in zip(rows.tolist(), self.size_of_image[images].tolist(), strict=True):
            where, why = self.samples[row].where, refused[place]
            size = _size_in_words(self.sizes_px[place], plan.image_size)
            problems.setdefault(row, VlmtuneError(f"{where}: {why.message}: {size}", why.hint))
        return problems


def _counted(
    sizes_px: Sequence[tuple[int, int]], plan: RunPlan, family: Family, model: ModelSource | ModelFacts
) -> tuple[list[int], dict[int, RefusedImage]]:
    """Return the tokens of an image of each size, and the places of those that the processor refuses (of 0 tokens)."""
    preprocessor = plan.preprocessor(model.preprocessor)
    tokens, refused = [], {}
    for place, size_px in enumerate(sizes_px):
        try:
            tokens.append(family.image_tokens(model.config, preprocessor, *shrunk_size_px(size_px, plan.image_size)))
        except RefusedImage as why:
            tokens.append(0)
            refused[place] = why
    return tokens, refused


def _size_in_words(size_px: tuple[int, int], image_size: int | None) -> str:
    shrunk_px = shrunk_size_px(size_px, image_size)
    shrunk = "" if shrunk_px == size_px else f", {'×'.join(map(str, shrunk_px))} px by data.image_size: {image_size}"
    return f"{'×'.join(map(str, size_px))} px{shrunk}"


def measure(
    samples: Sequence[Sample],
    processor: ProcessorMixin,
    family: Family,
    progress: Progress | None = None,
    plan: RunPlan | None = None,
) -> Measures:
    """Return what rows have under every plan: text by the tokenizer, images from their headers.

    `progress` is told how far long work is, in place of who was told of reading. Boxes are counted as they are written
    under `plan`; in pixels of a picture that another plan shrinks more, a number may have a digit less.

    Raises:
        VlmtuneError: rows that the model cannot take, all of them named.
    """
    text = text_tokens(written(samples, plan, processor, family) if plan else samples, processor, family, progress)
    num_images, sizes_px = images_of(samples)
    size_of_image, sizes = _sizes_once(sizes_px)
    return Measures(samples, text, num_images, size_of_image.astype(np.int32), sizes)


def _sizes_once(sizes_px: np.ndarray) -> tuple[np.ndarray, tuple[tuple[int, int], ...]]:
    """Return the place of each image's size among the different ones, [M], and these."""
    once, size_of_image = np.unique(sizes_px[:, 0] << SIDE_BITS | sizes_px[:, 1], return_inverse=True)
    sizes = zip((once >> SIDE_BITS).tolist(), (once & (1 << SIDE_BITS) - 1).tolist(), strict=True)
    return size_of_image, tuple(sizes)


def tokens_of_images(sizes_px: np.ndarray, plan: RunPlan, model: ModelFacts) -> int:
    """Return the tokens of all images of these sizes, [M, 2], their markers included; refused ones have none."""
    size_of_image, sizes = _sizes_once(sizes_px)
    tokens, _ = _counted(sizes, plan, model.family, model)
    return int(np.bincount(size_of_image, minlength=len(sizes)) @ np.array(tokens, np.int64))


def images_of(samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """Return how many images each row has, [N], and each image's width and height, row after row, [M, 2]."""
    if isinstance(samples, SamplesOnDisk):
        from vlmtune.data.table.looks import image_sizes_px

        num_images, sizes_px = image_sizes_px(samples)
        return num_images, sizes_px.astype(np.int64)
    num_images = np.array([len(sample.images) for sample in samples], np.int32)
    sizes_px = [image_size_px(ref) for sample in samples for ref in sample.images]
    return num_images, np.array(sizes_px, np.int64).reshape(-1, 2)


def check_image_tokens(processor: ProcessorMixin, family: Family, plan: RunPlan, source: ModelSource) -> None:
    """Encode a picture: the plan's processor must make as many image tokens as are counted for it."""
    picture = Image.new("RGB", PROBE_SIZE_PX, "grey")
    row = encode(PROBE, [picture], processor, family)
    counted = family.image_tokens(source.config, plan.preprocessor(source.preprocessor), *PROBE_SIZE_PX)
    if row.num_image_tokens != counted:
        raise VlmtuneError(
            f"the processor of {plan.model_name} makes {row.num_image_tokens} image tokens of a picture for which the "
            f"model has {counted}",
            "preprocessor_config.json and config.json of the model do not fit together: download both again",
        )


def refuse_too_long(lengths: Lengths, plan: RunPlan) -> None:
    """Raise one error that names every row whose text is over `max_length`, unless rows are to be cut."""
    too_long = np.flatnonzero(lengths.text > plan.max_length).tolist()
    if not too_long or plan.truncation == "cut":
        return
    raise VlmtuneError(
        f"{len(too_long)} of {len(lengths)} rows have more than data.max_length: {plan.max_length} text tokens",
        f"set data.max_length: {lengths.text.max()}, or data.truncation: cut",
        problems=tuple(
            VlmtuneError(f"{lengths.where(index)}: {lengths.text[index]} text tokens")
            for index in too_long[:MAX_PROBLEMS]
        ),
    )


def refuse_without_answer(lengths: Lengths, processor: ProcessorMixin, family: Family, plan: RunPlan) -> None:
    """Raise one error that names every row of which cutting to `max_length` would leave nothing to learn."""
    if plan.truncation != "cut":
        return
    problems = []
    for index in np.flatnonzero(lengths.text > plan.max_length).tolist():
        sample = lengths.samples[index]
        num_tokens = _tokens_before_answer(sample, processor, family)
        if num_tokens >= plan.max_length:
            problems.append(VlmtuneError(f"{sample.where}: the answer begins after {num_tokens} text tokens"))
    if problems:
        raise VlmtuneError(
            f"cutting to data.max_length: {plan.max_length} text tokens leaves no answer in {len(problems)} rows",
            "raise data.max_length or shorten the questions",
            problems=tuple(problems[:MAX_PROBLEMS]),
        )


def _tokens_before_answer(sample: Sample, processor: ProcessorMixin, family: Family) -> int:
    if family.one_answer:
        return len(processor.tokenizer(question_text(sample.turns[0].text, family))["input_ids"])
    text, answers = render(sample, processor)
    first_answer = next(index for index, turn in enumerate(sample.turns) if turn.role == "assistant")
    num_images = len(Sample(sample.turns[:first_answer], sample.where).images)
    return len(processor.tokenizer(text[: answers[0][0]])["input_ids"]) - num_images
