"""Sample → tensors of one row: rendered by the chat template, tokenised by the processor, labels on the answers only.

Where an answer begins and ends is read from the template itself (render up to a turn, render with it), then carried to
tokens by the tokenizer's character offsets. Nothing is searched for in the text.

Shapes: T tokens of this row.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from PIL.Image import Image
from torch import Tensor
from transformers import ProcessorMixin

from vlmtune.data.boundary import answer_apart, rewritten
from vlmtune.data.fit.enlarged import enlarged_beyond
from vlmtune.data.fit.given import left_out
from vlmtune.data.fit.misfit import misfit
from vlmtune.data.types import Sample
from vlmtune.errors import VlmtuneError
from vlmtune.families.base import Family
from vlmtune.models.opened.processor import REFUSALS
from vlmtune.models.processor import image_token_id, special_token_ids

IGNORED = -100
QFORMER_KEYS = ("qformer_input_ids", "qformer_attention_mask")
"""Tensors [1, Q] of the question in the Q-Former's own tokens."""
Span = tuple[int, int]


@dataclass(frozen=True)
class Encoded:
    """One row, ready to be put into a batch."""

    tensors: dict[str, Tensor]
    """What the model takes. Token tensors have shape [1, T]; image tensors are as the processor made them."""
    labels: Tensor
    """[1, T]: the token id where it is learned, -100 elsewhere."""
    is_image: Tensor
    """[T]: True at tokens that stand for an image, its markers included."""
    where: str
    num_cut_tokens: int = 0

    @property
    def num_text_tokens(self) -> int:
        """Tokens that are not images."""
        return int((~self.is_image).sum())

    @property
    def num_image_tokens(self) -> int:
        """Tokens that stand for images, their markers included."""
        return int(self.is_image.sum())


def encode(sample: Sample, images: list[Image], processor: ProcessorMixin, family: Family) -> Encoded:
    """Return the row's tensors and labels.

    Raises:
        VlmtuneError: the row and the model's template or processor do not go together.
    """
    if problem := misfit(sample, processor, family):
        raise problem
    for image in images:
        if enlarged := enlarged_beyond(image.size, processor):
            size = f"{image.width:,}×{image.height:,} pixels"
            raise VlmtuneError(f"{sample.where}: {size}: {enlarged}", "cut or shrink the picture")
    try:
        if family.prefix_lm:
            return _encode_prefix_lm(sample, images, processor)
        if family.qformer:
            return _encode_with_qformer(sample, images, processor)
        text, answers = render(sample, processor)
        if apart := answer_apart(text, answers, processor, sample.where):
            prompt = _encode_text(text[: answers[-1][0]], answers[:-1], sample, images, processor)
            return _with_answer(prompt, apart.ids, processor)
        return _encode_text(text, answers, sample, images, processor)
    except REFUSALS as error:
        raise VlmtuneError(f"{sample.where}: the processor refuses this row: {error}") from None


def _encode_text(
    text: str, answers: list[Span], sample: Sample, images: list[Image], processor: ProcessorMixin
) -> Encoded:
    output = _call_processor(processor, text, images, offsets=True)
    reported = output.pop("text_replacement_offsets", None)
    offsets = torch.as_tensor(output.pop("offset_mapping")[0]).tolist()
    replaced = reported[0] if reported else _replacements(text, processor, max(end for _, end in offsets))
    if len(replaced) != len(images):
        raise VlmtuneError(
            f"{sample.where}: the text holds {len(replaced)} image tokens for {len(images)} images",
            f"remove the model's own image token {processor.image_token!r} from the texts",
        )
    is_image = torch.tensor([any(s <= a < e for s, e in (r["new_span"] for r in replaced)) for a, _ in offsets])
    spans = [_expanded(answer, replaced) for answer in answers]
    labels = _labels(output["input_ids"][0], offsets, spans, processor, sample.where)
    return Encoded(dict(output), labels.unsqueeze(0), is_image, sample.where)


def _with_answer(prompt: Encoded, ids: list[int], processor: ProcessorMixin) -> Encoded:
    """Return the row of a prompt and the tokens after it, of which those up to the last end token are learned."""
    total, answer_1A = prompt.labels.shape[1], torch.tensor([ids])
    added = {"input_ids": answer_1A, "attention_mask": torch.ones_like(answer_1A)}
    tensors = {
        key: torch.cat([value, added.get(key, torch.zeros_like(answer_1A))], dim=1)
        if is_token_tensor(key, value, total)
        else value
        for key, value in prompt.tensors.items()
    }
    each_token = [(place, place + 1) for place in range(len(ids))]
    labels_A = _labels(answer_1A[0], each_token, [(0, len(ids))], processor, prompt.where)
    is_image = torch.cat([prompt.is_image, torch.zeros_like(labels_A, dtype=torch.bool)])
    return Encoded(tensors, torch.cat([prompt.labels, labels_A[None]], dim=1), is_image, prompt.where)


def encode_prompt(sample: Sample, images: list[Image], processor: ProcessorMixin, family: Family) -> dict[str, Tensor]:
    """Return the tensors of everything before the last answer, as the model sees it when it is asked."""
    if problem := misfit(sample, processor, family):
        raise problem
    if family.prefix_lm:
        return dict(_call_processor(processor, _prefix(sample, processor), images))
    if family.qformer:
        return _qformer_prompt(sample, images, processor)
    text = _by_template(processor, sample.prompt.messages(), sample, ask=True)
    return dict(_call_processor(processor, text, images))


def render(sample: Sample, processor: ProcessorMixin) -> tuple[str, list[Span]]:
    """Return the row's text and the character span of each answer, what the template puts after it included."""
    messages = sample.messages()

    def rendered(num_turns: int, *, ask: bool = False) -> str:
        return _by_template(processor, messages[:num_turns], sample, ask)

    if sample.has_more and (problem := _left_out(sample, processor)):
        raise problem
    full, spans = rendered(len(messages)), []
    for index, turn in enumerate(sample.turns):
        if not turn.is_answer:
            continue
        before, upto = rendered(index, ask=True), rendered(index + 1)
        if not (full.startswith(before) and full.startswith(upto)):
            is_kept = full.startswith(rendered(index)) and full.startswith(upto)
            raise rewritten(sample.where, index + 1, is_kept)
        spans.append((len(before), len(upto)))
    return full, spans


def _left_out(sample: Sample, processor: ProcessorMixin) -> VlmtuneError | None:
    def rendered(part: Sample) -> str:
        return _by_template(processor, part.messages(), part, ask=False)

    return left_out(sample, rendered, str(processor.chat_template))


def _by_template(processor: ProcessorMixin, messages: list[dict], sample: Sample, ask: bool) -> str:
    given = {"tools": json.loads(sample.tools)} if sample.tools else {}
    try:
        return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask, **given)
    except (TemplateError, *REFUSALS) as error:
        raise VlmtuneError(f"{sample.where}: the chat template refuses this row: {error}") from None


def cut(row: Encoded, max_text_tokens: int) -> Encoded:
    """Return the row with at most `max_text_tokens` text tokens, cut from the end of the last answer.

    Raises:
        VlmtuneError: that would leave nothing to learn, or take image tokens.
    """
    excess = row.num_text_tokens - max_text_tokens
    if excess <= 0:
        return row
    kept = row.labels.shape[1] - excess
    if bool(row.is_image[kept:].any()) or not bool((row.labels[0, :kept] != IGNORED).any()):
        raise VlmtuneError(
            f"{row.where}: {row.num_text_tokens} text tokens, and cutting to {max_text_tokens} leaves no answer",
            "raise data.max_length or shorten the question",
        )
    total = row.labels.shape[1]
    tensors = {
        key: value[:, :kept] if is_token_tensor(key, value, total) else value for key, value in row.tensors.items()
    }
    return Encoded(tensors, row.labels[:, :kept], row.is_image[:kept], row.where, num_cut_tokens=excess)


def is_token_tensor(key: str, value: Any, num_tokens: int) -> bool:
    """Return whether this tensor holds one value for each token of the language model."""
    return key not in QFORMER_KEYS and isinstance(value, Tensor) and value.shape == (1, num_tokens)


def _call_processor(processor: ProcessorMixin, text: str, images: list[Image], offsets: bool = False) -> dict[str, Any]:
    bos = processor.tokenizer.bos_token
    wanted = {"return_offsets_mapping": True, "return_text_replacement_offsets": True} if offsets else {}
    return processor(
        text=[text],
        images=images or None,
        return_tensors="pt",
        add_special_tokens=not (bos and text.startswith(bos)),
        **wanted,
    )


def _replacements(text: str, processor: ProcessorMixin, num_characters: int) -> list[dict]:
    """Return where image tokens were and are, for a processor that does not say: all its images take the same room."""
    spans = [found.span() for found in re.finditer(re.escape(processor.image_token), text)]
    grown = (num_characters - len(text)) // max(1, len(spans))
    return [
        {"span": (start, end), "new_span": (start + index * grown, end + (index + 1) * grown)}
        for index, (start, end) in enumerate(spans)
    ]


def _expanded(span: Span, replaced: list[dict]) -> Span:
    """Return the span's place after image placeholders were replaced by longer texts."""

    def shift(position: int) -> int:
        grown = [r["new_span"][1] - r["span"][1] for r in replaced if r["span"][1] <= position]
        return position + (grown[-1] if grown else 0)

    return shift(span[0]), shift(span[1])


def _labels(ids_T: Tensor, offsets: list[Span], answers: list[Span], processor: ProcessorMixin, where: str) -> Tensor:
    """Return labels [T]: each answer's tokens up to and including its end token."""
    labels_T = torch.full_like(ids_T, IGNORED)
    special = special_token_ids(processor)
    for start, end in answers:
        inside = [t for t, (a, b) in enumerate(offsets) if start <= a < end and b > a]
        ends = [t for t in inside if int(ids_T[t]) in special]
        if not ends:
            raise VlmtuneError(f"{where}: the chat template ends this answer without an end token")
        learned = [t for t in inside if t <= ends[-1]]
        labels_T[learned] = ids_T[learned]
    return labels_T


def _encode_prefix_lm(sample: Sample, images: list[Image], processor: ProcessorMixin) -> Encoded:
    """Prompt as prefix, answer as suffix: the processor marks the suffix, and the attention follows the marks."""
    prefix, answer = _prefix(sample, processor), sample.answer
    output = dict(processor(text=[prefix], suffix=[answer], images=images, return_tensors="pt"))
    labels = output.pop("labels")
    return Encoded(output, labels, output["input_ids"][0] == processor.image_token_id, sample.where)


def _prefix(sample: Sample, processor: ProcessorMixin) -> str:
    return processor.image_token * len(sample.images) + sample.turns[0].text.strip()


def _encode_with_qformer(sample: Sample, images: list[Image], processor: ProcessorMixin) -> Encoded:
    """The prompt as at inference, the answer's tokens after it, then the end token.

    The answer goes to the language model alone: a Q-Former that reads it makes image features that hold the answer,
    and the model learns to read it from there.
    """
    output = _qformer_prompt(sample, images, processor)
    tokenizer = processor.tokenizer
    answer = [*tokenizer(sample.answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    answer_1A = torch.tensor([answer])
    prompt_1P = output["input_ids"]
    output["input_ids"] = torch.cat([prompt_1P, answer_1A], dim=1)
    output["attention_mask"] = torch.ones_like(output["input_ids"])
    labels = torch.cat([torch.full_like(prompt_1P, IGNORED), answer_1A], dim=1)
    return Encoded(output, labels, output["input_ids"][0] == image_token_id(processor), sample.where)


def _qformer_prompt(sample: Sample, images: list[Image], processor: ProcessorMixin) -> dict[str, Tensor]:
    """Return the queries' tokens and the question's, both in the language model's words, and the question's again in
    the Q-Former's. The library puts any number of features where it finds tokens, so these are counted here."""
    output = dict(processor(text=[sample.turns[0].text.strip()], images=images, return_tensors="pt"))
    num_tokens = int((output["input_ids"] == image_token_id(processor)).sum())
    if num_tokens != processor.num_query_tokens:
        raise VlmtuneError(
            f"{sample.where}: {num_tokens} image tokens for the model's {processor.num_query_tokens} queries",
            f"remove the model's own image token {processor.image_token} from the texts",
        )
    return output
