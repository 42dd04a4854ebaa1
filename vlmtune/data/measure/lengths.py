"""How long rows are before any image is decoded: measured once, counted for as many plans as are looked at."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from PIL import Image
from transformers import ProcessorMixin

from vlmtune.data.boxes.writing import written
from vlmtune.data.encode import encode, render
from vlmtune.data.images import image_size_px, shrunk_size_px
from vlmtune.data.measure.counting import PROBE, question_text, text_tokens
from vlmtune.data.measure.pictures import refused_sizes
from vlmtune.data.progress import Progress
from vlmtune.data.samples import refusal
from vlmtune.data.types import BadRow, Sample, SamplesOnDisk
from vlmtune.errors import VlmtuneError
from vlmtune.families.base import Family, RefusedImage
from vlmtune.families.facts import ModelFacts
from vlmtune.hub.source import ModelSource
from vlmtune.plan.types import RunPlan

PROBE_SIZE_PX = (320, 240)
MAX_PROBLEMS = 50
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

    def without(self, rows: Collection[int]) -> "Measures":
        """Return the measures of the other rows."""
        if not rows:
            return self
        mask = np.ones(len(self.samples), bool)
        mask[list(rows)] = False
        return Measures(
            chosen_rows(self.samples, mask),
            self.text[mask],
            self.num_images[mask],
            self.size_of_image[np.repeat(mask, self.num_images)],
            self.sizes_px,
        )

    def lengths(self, plan: RunPlan, family: Family, source: ModelSource) -> Lengths:
        """Return the tokens of each row under `plan`; nothing is read or rendered.

        Raises:
            VlmtuneError: images of sizes that the model's processor refuses, their rows named.
        """
        tokens_of_size, refused = _counted(self.sizes_px, plan, family, source)
        if bad_rows := self._rows_with(refused, plan):
            raise refusal(bad_rows, len(self.samples) - len(bad_rows), "do not fit the model")
        tokens_until = np.concatenate([[0], np.cumsum(np.array(tokens_of_size, np.int64)[self.size_of_image])])
        ends = np.cumsum(self.num_images, dtype=np.int64)
        image = tokens_until[ends] - tokens_until[ends - self.num_images]
        return Lengths(self.samples, self.text, image.astype(np.int32))

    def _rows_with(self, refused: dict[int, RefusedImage], plan: RunPlan) -> list[BadRow]:
        bad_rows = []
        for row, (_, size) in self.first_images(refused).items():
            sample, why = self.samples[row], refused[size]
            problem = f"{why.message}: {_size_in_words(self.sizes_px[size], plan.image_size)}"
            bad_rows.append(BadRow(sample.where, problem, why.hint, sample.number))
        return bad_rows

    def first_images(self, sizes: Collection[int]) -> dict[int, tuple[int, int]]:
        """Return the rows with an image of one of these sizes, and of its first one the place in the row and the size.

        Sizes are named by their places in `sizes_px`.
        """
        images = np.flatnonzero(np.isin(self.size_of_image, list(sizes)))
        ends = np.cumsum(self.num_images)
        rows = np.searchsorted(ends, images, side="right")
        places = images - (ends - self.num_images)[rows]
        found: dict[int, tuple[int, int]] = {}
        for row, place, size in zip(rows.tolist(), places.tolist(), self.size_of_image[images].tolist(), strict=True):
            found.setdefault(row, (place, size))
        return found


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


def chosen_rows(samples: Sequence[Sample], mask: np.ndarray) -> Sequence[Sample]:
    """Return the rows for which the mask is true, where they are."""
    if isinstance(samples, SamplesOnDisk):
        from vlmtune.data.table.rows import TableRows

        assert isinstance(samples, TableRows)
        return samples.chosen(mask)
    return [samples[index] for index in np.flatnonzero(mask)]


def measure(
    samples: Sequence[Sample],
    processor: ProcessorMixin,
    family: Family,
    progress: Progress | None = None,
    plan: RunPlan | None = None,
) -> tuple[Measures, list[BadRow]]:
    """Return what rows have under every plan, text by the tokenizer, images from their headers; and refused rows.

    Rows that the model cannot take are not measured. `progress` is told how far long work is, in place of who was told
    of reading. Boxes are counted as they are written under `plan`; in pixels of a picture that another plan shrinks
    more, a number may have a digit less.
    """
    given = written(samples, plan, processor, family) if plan else samples
    text, bad_rows = text_tokens(given, processor, family, progress)
    if bad_rows:
        samples, text = chosen_rows(samples, text >= 0), text[text >= 0]
    num_images, sizes_px = images_of(samples)
    size_of_image, sizes = _sizes_once(sizes_px)
    return Measures(samples, text, num_images, size_of_image.astype(np.int32), sizes), bad_rows


def refused_pictures(measures: Measures, processor: ProcessorMixin, family: Family, plan: RunPlan) -> dict[int, BadRow]:
    """Return the rows with a picture of a size that the processor refuses under this plan, by their places."""
    refused = refused_sizes(measures.sizes_px, processor, family, plan.image_size)
    bad_rows: dict[int, BadRow] = {}
    for row, (image, size) in measures.first_images(refused).items():
        sample, (width_px, height_px) = measures.samples[row], measures.sizes_px[size]
        problem = f"image {image + 1} ({width_px}×{height_px} px): {refused[size]}"
        bad_rows[row] = BadRow(sample.where, problem, "crop or scale it, or leave the row out", sample.number)
    return bad_rows


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
    if plan.truncation == "cut" and (bad_rows := refused_lengths(lengths, processor, family, plan)):
        raise VlmtuneError(
            f"cutting to data.max_length: {plan.max_length} text tokens leaves no answer in {len(bad_rows)} rows",
            "raise data.max_length or shorten the questions",
            problems=tuple(VlmtuneError(f"{bad.where}: {bad.problem}") for bad in [*bad_rows.values()][:MAX_PROBLEMS]),
        )


def refused_lengths(lengths: Lengths, processor: ProcessorMixin, family: Family, plan: RunPlan) -> dict[int, BadRow]:
    """Return the rows over `max_length` by their places; where they are cut, those with nothing to learn left."""
    bad_rows = {}
    for index in np.flatnonzero(lengths.text > plan.max_length).tolist():
        sample = lengths.samples[index]
        why, hint = f"{lengths.text[index]} text tokens", f"data.max_length is {plan.max_length}"
        if plan.truncation == "cut":
            asked, until_image = _tokens_that_stay(sample, processor, family)
            if max(asked + 1, until_image) <= plan.max_length:
                continue
            late_image = f"its last image ends after {until_image} text tokens"
            why = late_image if until_image > asked else f"the answer begins after {asked} text tokens"
        bad_rows[index] = BadRow(sample.where, why, hint, sample.number)
    return bad_rows


def _tokens_that_stay(sample: Sample, processor: ProcessorMixin, family: Family) -> tuple[int, int]:
    """Return the text tokens before the first answer, and before the end of the last image where that comes later."""
    if family.one_answer:
        return len(processor.tokenizer(question_text(sample.turns[0].text, family))["input_ids"]), 0
    text, answers = render(sample, processor)
    first_answer = next(index for index, turn in enumerate(sample.turns) if turn.is_answer)
    num_asked, num_all = len(replace(sample, turns=sample.turns[:first_answer]).images), len(sample.images)

    def tokens(part: str, num_images: int) -> int:
        return len(processor.tokenizer(part)["input_ids"]) - num_images

    before, mark, _ = text.rpartition(str(getattr(processor, "image_token", ""))) if num_asked < num_all else ("",) * 3
    return tokens(text[: answers[0][0]], num_asked), tokens(before + mark, num_all) if mark else 0
