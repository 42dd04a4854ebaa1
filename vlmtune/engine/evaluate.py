"""How good a model is: mean loss, and exact match of what it writes."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from vlmtune.data.collate import WHERE, Collator
from vlmtune.data.dataset import TuneDataset
from vlmtune.data.encode import IGNORED
from vlmtune.data.progress import Advance, nobody
from vlmtune.data.types import Sample
from vlmtune.engine.step import forward_loss
from vlmtune.engine.tuned import Tuned
from vlmtune.models.build import base_of, family_of
from vlmtune.models.processor import turn_end_id
from vlmtune.plan.types import RunPlan


@dataclass(frozen=True)
class Answer:
    """One held-out row and what the model made of it."""

    where: str
    question: str
    expected: str
    answer: str
    loss: float

    @property
    def exact(self) -> bool:
        """Whether the answers agree, but for blanks at their ends."""
        return self.answer.strip() == self.expected.strip()


def mean_loss(model: nn.Module, rows: Dataset, collator: Callable, plan: RunPlan, on_row: Advance = nobody) -> float:
    """Return the evaluation loss: the mean cross-entropy a labelled token over all rows."""
    losses = row_losses(model, rows, collator, plan, on_row)
    return sum(loss for loss, _ in losses) / max(1, sum(tokens for _, tokens in losses))


def row_losses(
    model: nn.Module, rows: Dataset, collator: Callable, plan: RunPlan, on_row: Advance = nobody
) -> list[tuple[float, int]]:
    """Return (summed loss, labelled tokens) of each row; one at a time needs less memory than any training step.

    `on_row` is called with 1 after each.
    """
    was_training = model.training
    model.eval()
    losses = []
    with torch.no_grad():
        for index in range(len(rows)):
            batch = collator([rows[index]])
            batch = {key: value.to(plan.device) for key, value in batch.items() if key != WHERE}
            tokens = int((batch["labels"] != IGNORED).sum())
            losses.append((forward_loss(model, batch, plan, num_items=1).item(), tokens))
            on_row(1)
    model.train(was_training)
    return losses


@dataclass(frozen=True)
class Evaluation:
    """Every held-out row's answer, and the loss over all of them."""

    loss: float
    """Mean cross-entropy a labelled token."""
    answers: list[Answer]

    @property
    def exact_match(self) -> float:
        """Share of answers that are exactly the expected ones."""
        return sum(answer.exact for answer in self.answers) / len(self.answers)

    def as_dict(self) -> dict:
        """Return everything as JSON values."""
        rows = [{**dataclasses.asdict(answer), "exact": answer.exact} for answer in self.answers]
        return {"rows": len(self.answers), "loss": self.loss, "exact_match": self.exact_match, "answers": rows}


def evaluate_rows(
    tuned: Tuned,
    samples: Sequence[Sample],
    max_new_tokens: int,
    on_loss: Advance = nobody,
    on_answer: Advance = nobody,
) -> Evaluation:
    """Return loss and generated answer of every row; each is told of with 1."""
    rows = TuneDataset(samples, tuned.processor, family_of(tuned.plan), tuned.plan, tuned.features)
    losses = row_losses(tuned.model, rows, Collator(tuned.processor), tuned.plan, on_loss)
    answers = [
        Answer(sample.where, sample.turns[-2].text, sample.answer, answer, loss / max(1, tokens))
        for sample, answer, (loss, tokens) in zip(
            rows.samples, generate(tuned, samples, max_new_tokens, on_answer), losses, strict=True
        )
    ]
    return Evaluation(sum(loss for loss, _ in losses) / max(1, sum(tokens for _, tokens in losses)), answers)


def generate(tuned: Tuned, samples: Sequence[Sample], max_new_tokens: int, on_answer: Advance = nobody) -> list[str]:
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
        new_ids = ids[0, prompt["input_ids"].shape[1] :]
        answers.append(processor.tokenizer.decode(new_ids, skip_special_tokens=True).strip())
        on_answer(1)
    return answers


def greedy(model: nn.Module, prompt: dict[str, Tensor], **settings: Any) -> Tensor:
    """Return prompt and answer [1, T], always the likeliest token; `settings` are those of transformers' generate.

    With a cache of keys and values whatever the model's config says: SmolVLM's says no.
    """
    with torch.no_grad():
        return model.generate(**prompt, do_sample=False, use_cache=True, **settings)


def end_token_ids(base: nn.Module, processor: ProcessorMixin) -> list[int]:
    """Return the ids that end an answer: the model's own, and the one that the chat template puts after an answer."""
    own = base.generation_config.eos_token_id
    ids = {*(own if isinstance(own, list) else [own]), processor.tokenizer.eos_token_id}
    if processor.chat_template:
        ids.add(turn_end_id(processor))
    return sorted(token_id for token_id in ids if token_id is not None)
