"""Samples as a map-style dataset: images are opened in the workers, when a row is asked for."""

from dataclasses import dataclass

from torch.utils.data import Dataset
from transformers import ProcessorMixin

from vlmtune.data.encode import Encoded, cut, encode, render
from vlmtune.data.images import image_size_px, open_image, shrunk_size_px
from vlmtune.data.types import Sample
from vlmtune.errors import VlmtuneError
from vlmtune.models.families.base import Family
from vlmtune.models.source import ModelSource
from vlmtune.plan import RunPlan

TOKENIZED_AT_ONCE = 1000


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

    def __getitem__(self, index: int) -> Encoded:
        sample = self.samples[index]
        images = [open_image(ref, self.plan.image_size) for ref in sample.images]
        row = encode(sample, images, self.processor, self.family)
        return cut(row, self.plan.max_length) if self.plan.truncation == "cut" else row


def measure_rows(
    samples: list[Sample], processor: ProcessorMixin, family: Family, plan: RunPlan, source: ModelSource
) -> list[RowTokens]:
    """Return every row's tokens: text by the tokenizer, images from their headers."""
    preprocessor = {**source.preprocessor, **plan.image_overrides}
    rows = []
    for start in range(0, len(samples), TOKENIZED_AT_ONCE):
        some = samples[start : start + TOKENIZED_AT_ONCE]
        texts = [_plain_text(sample, processor, family) for sample in some]
        lengths = [len(ids) for ids in processor.tokenizer(texts)["input_ids"]]
        for sample, length in zip(some, lengths, strict=True):
            sizes = [shrunk_size_px(image_size_px(ref), plan.image_size) for ref in sample.images]
            image = sum(family.image_tokens(source.config, preprocessor, *size) for size in sizes)
            rows.append(RowTokens(sample.where, length - len(sizes) * (not family.prefix_lm), image))
    return rows


def refuse_too_long(rows: list[RowTokens], plan: RunPlan) -> None:
    """Raise one error that names every row whose text is over `max_length`, unless rows are to be cut."""
    too_long = [row for row in rows if row.text > plan.max_length]
    if not too_long or plan.truncation == "cut":
        return
    longest = max(row.text for row in too_long)
    raise VlmtuneError(
        f"{len(too_long)} of {len(rows)} rows have more than data.max_length: {plan.max_length} text tokens",
        f"set data.max_length: {longest}, or data.truncation: cut",
        problems=tuple(VlmtuneError(f"{row.where}: {row.text} text tokens") for row in too_long[:50]),
    )


def _plain_text(sample: Sample, processor: ProcessorMixin, family: Family) -> str:
    if family.prefix_lm:
        return f"{sample.turns[0].text.strip()}\n{sample.answer}"
    return render(sample, processor)[0]
