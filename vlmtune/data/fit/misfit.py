"""Why a model of a family cannot take a row, known without opening its images."""

from transformers import ProcessorMixin

from vlmtune.data.types import Sample
from vlmtune.errors import VlmtuneError
from vlmtune.families.base import Family
from vlmtune.models.processor import image_marks


def misfit(sample: Sample, processor: ProcessorMixin, family: Family) -> VlmtuneError | None:
    """Return why a model of this family cannot take the row, known without opening its images; None where it can."""
    marks = image_marks(processor)
    if written := next((mark for turn in sample.turns if (mark := holds_mark(turn.text, marks))), None):
        return VlmtuneError(
            f"{sample.where}: a text holds {written}, by which the model knows an image",
            "remove it: images belong into the row's image column, and <image> where they go",
        )
    if family.one_answer and sample.has_more:
        return VlmtuneError(
            f"{sample.where}: this model has no chat template that would know tools or reasoning",
            "remove them, or write them into the texts",
        )
    if family.one_answer and [turn.role for turn in sample.turns] != ["user", "assistant"]:
        return VlmtuneError(
            f"{sample.where}: this model takes one question and one answer a row, no system turn",
            "split the conversation into rows with one question and one answer each",
        )
    if family.needs_image and not sample.images:
        return VlmtuneError(f"{sample.where}: this model needs an image in every row", "remove the text-only rows")
    if not family.qformer:
        return None
    if len(sample.images) > 1:
        return VlmtuneError(
            f"{sample.where}: this model takes one image a row, here are {len(sample.images)}",
            "split the row, or join its images into one picture",
        )
    most_tokens = processor.qformer_tokenizer.model_max_length
    num_tokens = len(processor.qformer_tokenizer(sample.turns[0].text.strip(), verbose=False)["input_ids"])
    if num_tokens > most_tokens:
        return VlmtuneError(
            f"{sample.where}: the Q-Former reads questions of up to {most_tokens} tokens, this one has {num_tokens}",
            "shorten the question",
        )
    return None


def holds_mark(text: str, marks: tuple[str, ...]) -> str | None:
    """Return the first of the model's own marks that a text holds."""
    return next((mark for mark in marks if mark in text), None)


def looks_at_rows(family: Family) -> bool:
    """Return whether a model of this family refuses rows by more than their texts."""
    return family.one_answer or family.needs_image or family.qformer
