"""Samples as a map-style dataset: images are opened in the workers, when a row is asked for."""

from dataclasses import dataclass

from PIL import Image
from torch.utils.data import Dataset, get_worker_info
from transformers import ProcessorMixin

from vlmtune.data.encode import Encoded, cut, encode, misfit, render
from vlmtune.data.images import image_size_px, open_image, shrunk_size_px
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
class RowTokens:
    """How long a row is before any image is decoded."""

    where: str
    text: int
    image: int

    @property
    def total(self) -> int:
        """All tokens of the row."""
        return self.text + self.image


class TuneDataset(Dataset):
    """Rows as `Encoded`."""

    def __init__(self, samples: list[Sample], processor: ProcessorMixin, family: Family, plan: RunPlan) -> None:
        self.samples = samples
        self.processor = processor
        self.family = family
        self.plan = plan

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Encoded | VlmtuneError:
        """Return the row. What is wrong with it is raised, in a worker returned: torch would make a traceback of it."""
        try:
            return self._row(self.samples[index])
        except VlmtuneError as error:
            if get_worker_info() is None:
                raise
            return error

    def _row(self, sample: Sample) -> Encoded:
        try:
            images = [open_image(ref, self.plan.image_size) for ref in sample.images]
        except VlmtuneError as error:
            raise VlmtuneError(f"{sample.where}: {error.message}", error.hint) from None
        row = encode(sample, images, self.processor, self.family)
        return cut(row, self.plan.max_length) if self.plan.truncation == "cut" else row


def measure_rows(
    samples: list[Sample], processor: ProcessorMixin, family: Family, plan: RunPlan, source: ModelSource
) -> list[RowTokens]:
    """Return every row's tokens: text by the tokenizer, images from their headers.

    Raises:
        VlmtuneError: rows that the model cannot take, all of them named, or image tokens counted wrongly.
    """
    _refuse_misfits(samples, processor, family)
    if any(sample.images for sample in samples):
        _check_image_tokens(processor, family, plan, source)
    preprocessor = {**source.preprocessor, **plan.image_overrides}
    rows = []
    for start in range(0, len(samples), TOKENIZED_AT_ONCE):
        some = samples[start : start + TOKENIZED_AT_ONCE]
        texts = [_plain_text(sample, processor, family) for sample in some]
        lengths = [len(ids) for ids in processor.tokenizer(texts)["input_ids"]]
        for sample, length in zip(some, lengths, strict=True):
            sizes = [shrunk_size_px(image_size_px(ref), plan.image_size) for ref in sample.images]
            image = sum(family.image_tokens(source.config, preprocessor, *size) for size in sizes)
            rows.append(RowTokens(sample.where, length - len(sizes) * (not family.one_answer), image))
    return rows


def _refuse_misfits(samples: list[Sample], processor: ProcessorMixin, family: Family) -> None:
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


def _check_image_tokens(processor: ProcessorMixin, family: Family, plan: RunPlan, source: ModelSource) -> None:
    """Encode a picture: the processor must make as many image tokens as are counted for it."""
    picture = Image.new("RGB", PROBE_SIZE_PX, "grey")
    row = encode(PROBE, [picture], processor, family)
    counted = family.image_tokens(source.config, {**source.preprocessor, **plan.image_overrides}, *PROBE_SIZE_PX)
    if row.num_image_tokens != counted:
        raise VlmtuneError(
            f"the processor of {plan.model_name} makes {row.num_image_tokens} image tokens of a picture for which the "
            f"model has {counted}",
            "preprocessor_config.json and config.json of the model do not fit together: download both again",
        )


def refuse_too_long(rows: list[RowTokens], plan: RunPlan) -> None:
    """Raise one error that names every row whose text is over `max_length`, unless rows are to be cut."""
    too_long = [row for row in rows if row.text > plan.max_length]
    if not too_long or plan.truncation == "cut":
        return
    longest = max(row.text for row in too_long)
    raise VlmtuneError(
        f"{len(too_long)} of {len(rows)} rows have more than data.max_length: {plan.max_length} text tokens",
        f"set data.max_length: {longest}, or data.truncation: cut",
        problems=tuple(VlmtuneError(f"{row.where}: {row.text} text tokens") for row in too_long[:MAX_PROBLEMS]),
    )


def refuse_without_answer(
    samples: list[Sample], rows: list[RowTokens], processor: ProcessorMixin, family: Family, plan: RunPlan
) -> None:
    """Raise one error that names every row of which cutting to `max_length` would leave nothing to learn."""
    if plan.truncation != "cut":
        return
    problems = []
    for sample, row in zip(samples, rows, strict=True):
        if row.text <= plan.max_length:
            continue
        num_tokens = _tokens_before_answer(sample, processor, family)
        if num_tokens >= plan.max_length:
            problems.append(VlmtuneError(f"{row.where}: the answer begins after {num_tokens} text tokens"))
    if problems:
        raise VlmtuneError(
            f"cutting to data.max_length: {plan.max_length} text tokens leaves no answer in {len(problems)} rows",
            "raise data.max_length or shorten the questions",
            problems=tuple(problems[:MAX_PROBLEMS]),
        )


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
