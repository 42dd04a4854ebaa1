"""How good a model is: mean loss, and exact match of what it writes."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unicodedata import normalize

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from vlmtune.data.collate import WHERE, Collator
from vlmtune.data.dataset import TuneDataset
from vlmtune.data.encode import IGNORED, render
from vlmtune.data.progress import Advance, nobody
from vlmtune.data.types import Sample
from vlmtune.engine.ranks import group
from vlmtune.engine.step import forward_loss
from vlmtune.engine.tuned import Tuned
from vlmtune.models.build import base_of, family_of
from vlmtune.models.embeddings import where_it_computes
from vlmtune.models.processor import THOUGHT_ENDS, plain_ids, special_token_ids, turn_end_id
from vlmtune.plan.types import RunPlan


@dataclass(frozen=True)
class Written:
    """What a model wrote in place of an answer."""

    answer: str
    """Special tokens that it has learned, such as those of boxes, included; without the one that ends it."""
    thought: str
    """What it wrote before, where its chat template knows thoughts."""
    is_cut: bool
    """It had not ended when the limit was reached."""


@dataclass(frozen=True)
class Answer:
    """One held-out row and what the model made of it."""

    where: str
    question: str
    expected: str
    answer: str
    loss: float
    cut: bool
    """The model would have written more."""

    @property
    def exact(self) -> bool:
        """Whether the answers agree, but for blanks at their ends and for how accents are encoded.

        Many tokenizers compose accents, so that no model could write them otherwise.
        """
        return normalize("NFC", self.answer.strip()) == normalize("NFC", self.expected.strip())


def mean_loss(model: nn.Module, rows: Dataset, collator: Callable, plan: RunPlan, on_row: Advance = nobody) -> float:
    """Return the evaluation loss: the mean cross-entropy a labelled token over all rows."""
    losses = row_losses(model, rows, collator, plan, on_row)
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
        for index in range(group.number(), len(rows), group.size()):
            batch = collator([rows[index]])
            batch = {key: value.to(plan.device) for key, value in batch.items() if key != WHERE}
            tokens = int((batch["labels"] != IGNORED).sum())
            losses.append((forward_loss(model, batch, plan, num_items=1).item(), tokens))
            on_row(min(group.size(), len(rows) - index))
    model.train(was_training)
    shares = group.gathered(losses)
    return [shares[index % len(shares)][index // len(shares)] for index in range(len(rows))]


@dataclass(frozen=True)
class Evaluation:
    """Every held-out row's answer, and the loss over all of them."""

    loss: float
    """Mean cross-entropy a labelled token."""
    answers: list[Answer]
    max_new_tokens: int
    """Tokens that an answer may have had."""

    @property
    def num_cut(self) -> int:
        """Answers that would have been longer."""
        return sum(answer.cut for answer in self.answers)

    @property
    def exact_match(self) -> float:
        """Share of answers that are exactly the expected ones."""
        return sum(answer.exact for answer in self.answers) / len(self.answers)

    def as_dict(self) -> dict:
        """Return everything as JSON values."""
        rows = [{**dataclasses.asdict(answer), "exact": answer.exact} for answer in self.answers]
        return {
            "rows": len(self.answers),
            "loss": self.loss,
            "exact_match": self.exact_match,
            "max_new_tokens": self.max_new_tokens,
            "num_cut": self.num_cut,
            "answers": rows,
        }


def evaluate_rows(
    tuned: Tuned,
    samples: Sequence[Sample],
    max_new_tokens: int | None,
    on_loss: Advance = nobody,
    on_answer: Advance = nobody,
) -> Evaluation:
    """Return loss and generated answer of every row; each is told of with 1.

    Without `max_new_tokens` an answer may have as many tokens as the longest expected one.
    """
    rows = TuneDataset(samples, tuned.processor, family_of(tuned.plan), tuned.plan, tuned.features)
    limit = max_new_tokens or max(num_answer_tokens(sample, tuned) for sample in rows.samples)
    losses = row_losses(tuned.model, rows, Collator(tuned.processor), tuned.plan, on_loss)
    answers = [
        Answer(
            sample.where,
            sample.turns[-2].text,
            without_thought(sample.answer, tuned.processor)[1],
            written.answer,
            loss / max(1, tokens),
            written.is_cut,
        )
        for sample, written, (loss, tokens) in zip(
            rows.samples, generate(tuned, samples, limit, on_answer), losses, strict=True
        )
    ]
    return Evaluation(sum(loss for loss, _ in losses) / max(1, sum(tokens for _, tokens in losses)), answers, limit)


def num_answer_tokens(sample: Sample, tuned: Tuned) -> int:
    """Return the tokens of the row's last answer, the one that ends it included."""
    processor = tuned.processor
    if family_of(tuned.plan).one_answer:
        return len(plain_ids(processor, sample.answer)) + 1
    asked = dataclasses.replace(sample.turns[-1], is_learned=True)
    text, answers = render(dataclasses.replace(sample, turns=(*sample.turns[:-1], asked)), processor)
    ids, special = plain_ids(processor, text[slice(*answers[-1])]), special_token_ids(processor)
    return max((place for place, token in enumerate(ids, 1) if token in special), default=len(ids))


def generate(
    tuned: Tuned, samples: Sequence[Sample], max_new_tokens: int, on_answer: Advance = nobody
) -> list[Written]:
    """Return what the model writes (greedily) in place of each sample's last answer."""
    plan, processor, answers = tuned.plan, tuned.processor, []
    ends = end_token_ids(base_of(tuned.model), processor)
    rows = TuneDataset(samples, processor, family_of(plan), plan, tuned.features)
    for index in range(len(samples)):
        prompt = {key: value.to(plan.device) for key, value in rows.prompt(index).items()}
        ids = greedy(
            tuned.model,
            prompt,
            max_new_tokens=max_new_tokens,
            eos_token_id=ends,
            pad_token_id=processor.tokenizer.pad_token_id,
        )
        new_ids = ids[0, prompt["input_ids"].shape[1] :].tolist()
        answers.append(_written(new_ids, ends, processor))
        on_answer(1)
    return answers


def _written(ids: list[int], ends: list[int], processor: ProcessorMixin) -> Written:
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


def greedy(model: nn.Module, prompt: dict[str, Tensor], **settings: Any) -> Tensor:
    """Return prompt and answer [1, T], always the likeliest token; `settings` are those of transformers' generate.

    With a cache of keys and values whatever the model's config says: SmolVLM's says no.
    """
    with torch.no_grad(), where_it_computes(base_of(model)):
        return model.generate(**prompt, do_sample=False, use_cache=True, **settings)


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
