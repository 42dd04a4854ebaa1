"""How good a model is: mean loss, and metrics of what it writes."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from vlmtune.data.collate import WHERE, Collator
from vlmtune.data.dataset import TuneDataset
from vlmtune.data.encode import IGNORED, Encoded, render
from vlmtune.data.progress import Advance, nobody
from vlmtune.data.types import Sample
from vlmtune.engine.answers.together import Together, free_bytes, row_bytes_of
from vlmtune.engine.ranks import group
from vlmtune.engine.step import forward_loss
from vlmtune.engine.tuned import Tuned
from vlmtune.families.base import THOUGHT_ENDS, Family
from vlmtune.metrics.table import over_rows, scores_of, value
from vlmtune.models.build import base_of, family_of
from vlmtune.models.embeddings import where_it_computes
from vlmtune.models.layers.shards import end_pass, pass_by
from vlmtune.models.processor import plain_ids, special_token_ids, turn_end_id
from vlmtune.plan.types import RunPlan
from vlmtune.runs.records import EvaluatedRow


@dataclass(frozen=True)
class Written:
    """What a model wrote in place of an answer."""

    answer: str
    """Special tokens that it has learned, such as those of boxes, included; without the one that ends it."""
    thought: str
    """What it wrote before, where its chat template knows thoughts."""
    is_cut: bool
    """It had not ended when the limit was reached."""


def mean_loss(losses: Sequence[tuple[float, int]]) -> float:
    """Return the evaluation loss, a mean over labelled tokens, of what `row_losses` found."""
    return sum(loss for loss, _ in losses) / max(1, sum(tokens for _, tokens in losses))


def row_losses(
    model: nn.Module, rows: Dataset, collator: Callable, plan: RunPlan, on_row: Advance = nobody
) -> list[tuple[float, int]]:
    """Return (summed loss, labelled tokens) of each row; one at a time needs less memory than any training step.

    Several processes share them. `on_row` is called with the number of rows that are done by each step.
    """
    was_training = model.training
    model.eval()
    losses = []
    with torch.no_grad():
        for first in range(0, len(rows), group.size()):
            index = first + group.number()
            if index >= len(rows):
                pass_by(base_of(model))
                continue
            batch = collator([rows[index]])
            batch = {key: value.to(plan.device) for key, value in batch.items() if key != WHERE}
            tokens = int((batch["labels"] != IGNORED).sum())
            losses.append((forward_loss(model, batch, plan, num_items=1).item(), tokens))
            on_row(min(group.size(), len(rows) - index))
        end_pass(base_of(model))
    model.train(was_training)
    shares = group.gathered(losses)
    return [shares[index % len(shares)][index // len(shares)] for index in range(len(rows))]


@dataclass(frozen=True)
class Terms:
    """How rows are asked, and by what answers are judged."""

    metrics: tuple[str, ...] = ("exact",)
    max_new_tokens: int | None = None
    """Of an answer. None: as many as the longest expected one has."""
    rows_at_once: int | None = None
    """None: as many as memory leaves room for."""


@dataclass(frozen=True)
class Evaluation:
    """Every held-out row's answer and scores, and loss and metrics over all of them."""

    loss: float
    """Mean cross-entropy a labelled token."""
    metrics: dict[str, float]
    answers: list[EvaluatedRow]
    max_new_tokens: int
    """Tokens that an answer may have had."""

    @property
    def num_cut(self) -> int:
        """Answers that would have been longer."""
        return sum(answer.cut for answer in self.answers)


def evaluate_rows(
    tuned: Tuned,
    samples: Sequence[Sample],
    terms: Terms = Terms(),
    on_loss: Advance = nobody,
    on_answer: Advance = nobody,
) -> Evaluation:
    """Return loss, generated answer and scores of every row; each is told of with 1."""
    rows = TuneDataset(samples, tuned.processor, family_of(tuned.plan), tuned.plan, tuned.features)
    limit = terms.max_new_tokens or longest_answer_tokens(rows, range(len(rows)))
    losses = row_losses(tuned.model, rows, Collator(tuned.processor), tuned.plan, on_loss)
    together = together_for(tuned.plan, terms.rows_at_once)
    written = answers_to(rows.prompts(), tuned, limit, together, on_answer)
    answers, scores = [], []
    for sample, one, (loss, tokens) in zip(rows.samples, written, losses, strict=True):
        expected = expected_answers(sample, tuned.processor)
        scores.append(scores_of(terms.metrics, one.answer, expected))
        answers.append(
            EvaluatedRow(
                where=sample.where,
                images=[ref.name for ref in sample.images],
                question=sample.turns[-2].text,
                expected=expected,
                answer=one.answer,
                loss=loss / max(1, tokens),
                cut=one.is_cut,
                scores={name: value(ratio) for name, ratio in scores[-1].items()},
            )
        )
    return Evaluation(mean_loss(losses), over_rows(scores), answers, limit)


def together_for(plan: RunPlan, rows_at_once: int | None = None) -> Together:
    """Return how many rows a model of a plan answers at once."""
    if family_of(plan).answers_alone:
        return Together(1)
    return Together(rows_at_once) if rows_at_once else Together(room_bytes=partial(free_bytes, plan.device))


def expected_answers(sample: Sample, processor: ProcessorMixin) -> list[str]:
    """Return every accepted answer of a row: the one that is learned, without its thought, and the others."""
    return [without_thought(sample.answer, processor)[1], *sample.accepted]


def longest_answer_tokens(rows: TuneDataset, indices: Iterable[int]) -> int:
    """Return the most tokens that the learned answer of one of these rows has."""
    return max(num_answer_tokens(rows.samples[index], rows.processor, rows.family) for index in indices)


def num_answer_tokens(sample: Sample, processor: ProcessorMixin, family: Family) -> int:
    """Return the tokens of the row's last answer, the one that ends it included."""
    if family.one_answer:
        return len(plain_ids(processor, sample.answer)) + 1
    asked = dataclasses.replace(sample.turns[-1], is_learned=True)
    text, answers = render(dataclasses.replace(sample, turns=(*sample.turns[:-1], asked)), processor)
    ids, special = plain_ids(processor, text[slice(*answers[-1])]), special_token_ids(processor)
    return max((place for place, token in enumerate(ids, 1) if token in special), default=len(ids))


def generate(
    tuned: Tuned, samples: Sequence[Sample], max_new_tokens: int, on_answer: Advance = nobody
) -> list[Written]:
    """Return what the model writes (greedily) in place of each sample's last answer, one row at a time."""
    rows = TuneDataset(samples, tuned.processor, family_of(tuned.plan), tuned.plan, tuned.features)
    return [*answers_to(rows.prompts(), tuned, max_new_tokens, Together(1), on_answer)]


def answers_to(
    prompts: Iterable[Encoded], tuned: Tuned, max_new_tokens: int, together: Together, on_answer: Advance = nobody
) -> Iterator[Written]:
    """Yield what the model writes (greedily) after each prompt; `on_answer` is told how many are done."""
    model, processor, collator = tuned.model, tuned.processor, Collator(tuned.processor)
    ends = end_token_ids(base_of(model), processor)

    def written(prompts: list[Encoded]) -> list[Written]:
        batch = {key: value.to(tuned.plan.device) for key, value in collator.prompts(prompts).items()}
        settings = {"eos_token_id": ends, "pad_token_id": processor.tokenizer.pad_token_id}
        ids_BT = generated(model, batch, max_new_tokens=max_new_tokens, **settings)
        new_ids = ids_BT[:, batch["input_ids"].shape[1] :].tolist()
        return [written_of(ids, ends, processor) for ids in new_ids]

    for batch in together.batches(prompts, row_bytes_of(model, max_new_tokens)):
        answers = together.halved(batch, written)
        on_answer(len(answers))
        yield from answers


def written_of(ids: list[int], ends: list[int], processor: ProcessorMixin) -> Written:
    """Return what new tokens say, up to the one that ends the answer."""
    end = next((place for place, token in enumerate(ids) if token in ends), None)
    text = processor.tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
    thought, answer = without_thought(text, processor)
    return Written(answer.strip(), thought.strip(), is_cut=end is None)


def without_thought(text: str, processor: ProcessorMixin) -> tuple[str, str]:
    """Return the thought that a text begins with, where the chat template knows thoughts, and what follows."""
    known = [end for end in THOUGHT_ENDS if end in str(processor.chat_template)]
    end = next((end for end in known if end in text), None)
    if end is None:
        return "", text
    thought, _, answer = text.rpartition(end)
    return thought, answer


def generated(model: nn.Module, prompt: dict[str, Tensor], **settings: Any) -> Tensor:
    """Return prompts and answers [B, T], the likeliest tokens unless `settings` of transformers' generate draw them.

    With a cache of keys and values whatever the model's config says: SmolVLM's says no.
    """
    with torch.no_grad(), where_it_computes(base_of(model)):
        return model.generate(**prompt, **{"do_sample": False, "use_cache": True, **settings})


def end_token_ids(base: nn.Module, processor: ProcessorMixin) -> list[int]:
    """Return the ids that end an answer: the model's own, and the one that the chat template puts after an answer."""
    own = base.generation_config.eos_token_id
    ids = {*(own if isinstance(own, list) else [own]), processor.tokenizer.eos_token_id}
    if processor.chat_template:
        ids.add(turn_end_id(processor))
    return sorted(token_id for token_id in ids if token_id is not None)


def serve_ends(model: nn.Module, processor: ProcessorMixin) -> None:
    """Let a model that is saved end its answers elsewhere as it does here: servers go by its generation config."""
    config, ends = model.generation_config, end_token_ids(model, processor)
    own = config.eos_token_id
    if set(ends) != set(own if isinstance(own, list) else [own]):
        config.eos_token_id = ends
