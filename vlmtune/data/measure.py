"""How long rows are before any image is decoded: measured once, counted for as many plans as are looked at."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image
from transformers import ProcessorMixin

from vlmtune.data.encode import encode, misfit, render
from vlmtune.data.images import image_size_px, shrunk_size_px
from vlmtune.data.types import ImageRef, Sample, Turn
from vlmtune.errors import VlmtuneError
from vlmtune.families.base import Family
from vlmtune.hub.source import ModelSource
from vlmtune.plan.types import RunPlan

TOKENIZED_AT_ONCE = 1000
MAX_PROBLEMS = 50
PROBE_SIZE_PX = (320, 240)
PROBE = Sample((Turn("user", (ImageRef(path="probe"), "What is this?")), Turn("assistant", ("Grey.",))), "probe")


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
        """Return the tokens of each row under `plan`; nothing is read or rendered."""
        preprocessor = {**source.preprocessor, **plan.image_overrides}
        tokens_of_size = [
            family.image_tokens(source.config, preprocessor, *shrunk_size_px(size_px, plan.image_size))
            for size_px in self.sizes_px
        ]
        tokens_until = np.concatenate([[0], np.cumsum(np.array(tokens_of_size, np.int64)[self.size_of_image])])
        ends = np.cumsum(self.num_images, dtype=np.int64)
        image = tokens_until[ends] - tokens_until[ends - self.num_images]
        return Lengths(self.samples, self.text, image.astype(np.int32))


def measure(samples: Sequence[Sample], processor: ProcessorMixin, family: Family) -> Measures:
    """Return what rows have under every plan: text by the tokenizer, images from their headers.

    Raises:
        VlmtuneError: rows that the model cannot take, all of them named.
    """
    _refuse_misfits(samples, processor, family)
    text = np.empty(len(samples), np.int32)
    for start in range(0, len(samples), TOKENIZED_AT_ONCE):
        some = samples[start : start + TOKENIZED_AT_ONCE]
        texts = [_plain_text(sample, processor, family) for sample in some]
        text[start : start + len(some)] = [len(ids) for ids in processor.tokenizer(texts)["input_ids"]]
    num_images = np.fromiter((len(sample.images) for sample in samples), np.int32, len(samples))
    places: dict[tuple[int, int], int] = {}
    sizes = (image_size_px(ref) for sample in samples for ref in sample.images)
    size_of_image = np.fromiter((places.setdefault(size, len(places)) for size in sizes), np.int32)
    marks = num_images * (not family.one_answer)  # a template writes one mark for each image
    return Measures(samples, text - marks, num_images, size_of_image, tuple(places))


def measure_rows(
    samples: Sequence[Sample], processor: ProcessorMixin, family: Family, plan: RunPlan, source: ModelSource
) -> Lengths:
    """Return every row's tokens under one plan.

    Raises:
        VlmtuneError: rows that the model cannot take, all of them named, or image tokens counted wrongly.
    """
    measures = measure(samples, processor, family)
    if len(measures.size_of_image):
        check_image_tokens(processor, family, plan, source)
    return measures.lengths(plan, family, source)


def check_image_tokens(processor: ProcessorMixin, family: Family, plan: RunPlan, source: ModelSource) -> None:
    """Encode a picture: the plan's processor must make as many image tokens as are counted for it."""
    picture = Image.new("RGB", PROBE_SIZE_PX, "grey")
    row = encode(PROBE, [picture], processor, family)
    counted = family.image_tokens(source.config, {**source.preprocessor, **plan.image_overrides}, *PROBE_SIZE_PX)
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


def _refuse_misfits(samples: Sequence[Sample], processor: ProcessorMixin, family: Family) -> None:
    found = [problem for sample in samples if (problem := misfit(sample, processor, family))]
    if not found:
        return
    if len(samples) == 1:
        raise found[0]
    hints: set[str | None] = set()
    problems = []
    for problem in found[:MAX_PROBLEMS]:
        problems.append(VlmtuneError(problem.message, None if problem.hint in hints else problem.hint))
        hints.add(problem.hint)
    raise VlmtuneError(f"{len(found)} of {len(samples)} rows do not fit the model", problems=tuple(problems))


def _tokens_before_answer(sample: Sample, processor: ProcessorMixin, family: Family) -> int:
    if family.one_answer:
        return len(processor.tokenizer(_question(sample, family))["input_ids"])
    text, answers = render(sample, processor)
    first_answer = next(index for index, turn in enumerate(sample.turns) if turn.role == "assistant")
    num_images = len(Sample(sample.turns[:first_answer], sample.where).images)
    return len(processor.tokenizer(text[: answers[0][0]])["input_ids"]) - num_images


def _plain_text(sample: Sample, processor: ProcessorMixin, family: Family) -> str:
    if family.one_answer:
        return f"{_question(sample, family)}{sample.answer}{processor.tokenizer.eos_token}"
    return render(sample, processor)[0]


def _question(sample: Sample, family: Family) -> str:
    """The question as a family without chat template writes it; the tokenizer puts its start token before it."""
    return sample.turns[0].text.strip() + "\n" * family.prefix_lm
