"""Answers to some held-out rows at each evaluation in training, within some minutes and what was estimated."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from vlmtune.data.dataset import TuneDataset
from vlmtune.data.progress import Advance
from vlmtune.data.types import count
from vlmtune.engine.answers.together import Together
from vlmtune.engine.evaluate import answers_to, expected_answers, longest_answer_tokens, together_for
from vlmtune.engine.ranks import group
from vlmtune.engine.ranks.pace import answering_in_step
from vlmtune.engine.tuned import Tuned
from vlmtune.metrics.table import over_rows, scores_of
from vlmtune.metrics.texts import Ratio
from vlmtune.models.build import DTYPES
from vlmtune.plan.types import RunPlan

if TYPE_CHECKING:
    from vlmtune.engine.trainer import TuneTrainer


def drawn_rows(plan: RunPlan, num_rows: int) -> list[int]:
    """Return which of so many held-out rows are asked, the same ones each time."""
    return random.Random(plan.seed).sample(range(num_rows), min(plan.generate_rows, num_rows))


@contextmanager
def asked(model: nn.Module, plan: RunPlan, device_type: str) -> Iterator[None]:
    """Let a model that learns answer: without dropout, in the precision of its steps."""
    was_training = model.training
    dtype = DTYPES[plan.autocast_dtype] if plan.autocast_dtype else None
    model.eval()
    try:
        with torch.autocast(device_type, dtype=dtype, enabled=dtype is not None):
            yield
    finally:
        model.train(was_training)


class HeldOutAnswers:
    """Asks the model that learns."""

    def __init__(
        self, plan: RunPlan, rows: TuneDataset, note: Callable[[str], None], rows_at_once: int | None = None
    ) -> None:
        """`rows_at_once` is how many the estimate has found room for on a card, which no estimate has without one."""
        self.plan = plan
        self.rows = rows
        self.note = note
        self.rows_at_once = rows_at_once or 1
        drawn = drawn_rows(plan, len(rows))
        self.limit = longest_answer_tokens(rows, drawn)
        self.indices = drawn[group.number() :: group.size()]
        """Those that this process asks."""
        self.is_off = False

    def metrics(self, trainer: "TuneTrainer") -> dict[str, float]:
        """Return the metrics over the rows, which the processes share; none where one of them could not answer its."""
        with asked(trainer.model, self.plan, self.plan.device), answering_in_step(trainer.model):
            share = self._share(trainer)
        shares = group.gathered(share)
        return {} if None in shares else over_rows([score for share in shares for score in share])

    def _share(self, trainer: "TuneTrainer") -> list[dict[str, Ratio]] | None:
        """Return the scores of this process's rows; None where the run is to stop, or no memory is left for a row."""
        if trainer.is_stopping:
            return None
        if not self.indices:
            return None if self.is_off else []
        model, progress = trainer.model, trainer.progress("answering rows", len(self.indices))
        self._give_back()
        try:
            with progress as advance:
                return self._scores(model, self._together(), advance, lambda: trainer.is_stopping)
        except torch.OutOfMemoryError:
            pass  # said outside of the handler, which holds what the forward pass had made
        finally:
            self._give_back()
        self.indices, self.is_off = [], True
        self.note("no memory for an answer beside the training: the loss alone is evaluated from here on")
        return None

    def _scores(
        self, model: nn.Module, together: Together, advance: Advance, is_stopping: Callable[[], bool]
    ) -> list[dict[str, Ratio]] | None:
        scores, started_s = [], time.monotonic()
        tuned = Tuned(self.plan, model, self.rows.processor)
        answers = answers_to(self.rows.prompts(self.indices), tuned, self.limit, together, advance)
        for index, written in zip(self.indices, answers, strict=False):
            expected = expected_answers(self.rows.samples[index], self.rows.processor)
            scores.append(scores_of(self.plan.metrics, written.answer, expected))
            if is_stopping():
                return None
            if time.monotonic() - started_s > 60 * self.plan.generate_minutes and len(scores) < len(self.indices):
                self._keep(self.indices[: len(scores)], "evaluation.generate_minutes are over")
                break
        return scores

    def _together(self) -> Together:
        """Return how many rows are answered at once: on a card as many as were counted beside the training."""
        return Together(self.rows_at_once) if self.plan.device == "cuda" else together_for(self.plan)

    def _keep(self, indices: list[int], why: str) -> None:
        if len(indices) < len(self.indices):
            of_all = f"{len(indices):,} of {count(len(self.indices), 'held-out row')}"
            self.note(f"{of_all} {'is' if len(indices) == 1 else 'are'} answered at each evaluation: {why}")
            self.indices = indices

    def _give_back(self) -> None:
        """Leave no blocks of other sizes in the allocator, neither to the answers nor to the training."""
        if self.plan.device == "cuda":
            torch.cuda.empty_cache()
