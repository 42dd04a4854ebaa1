"""Answers to some held-out rows at each evaluation in training, within its memory and some minutes."""

import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import TrainerCallback

from vlmtune.data.dataset import TuneDataset
from vlmtune.data.progress import Advance
from vlmtune.data.types import count
from vlmtune.engine.answers.together import SHARE_FOR_CACHE, Together, row_bytes_of
from vlmtune.engine.evaluate import answers_to, expected_answers, longest_answer_tokens, together_for
from vlmtune.engine.ranks import group
from vlmtune.engine.tuned import Tuned
from vlmtune.metrics.table import over_rows, scores_of
from vlmtune.metrics.texts import Ratio
from vlmtune.models.build import DTYPES
from vlmtune.plan.types import RunPlan

if TYPE_CHECKING:
    from vlmtune.engine.trainer import TuneTrainer


class HeldOutAnswers(TrainerCallback):
    """Asks the model that learns; the same rows each time, drawn by the run's seed."""

    def __init__(self, plan: RunPlan, rows: TuneDataset, note: Callable[[str], None]) -> None:
        self.plan = plan
        self.rows = rows
        self.note = note
        drawn = random.Random(plan.seed).sample(range(len(rows)), min(plan.generate_rows, len(rows)))
        self.limit = longest_answer_tokens(rows, drawn)
        self.indices = drawn[group.number() :: group.size()]
        """Those that this process asks."""
        self.is_off = False
        self.has_trained = False
        self.is_bounded = False
        """Whether the rows are those that a training step's memory suffices for."""

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.has_trained = True

    def metrics(self, trainer: "TuneTrainer") -> dict[str, float]:
        """Return the metrics over the rows, which the processes share; none where one of them could not answer its."""
        shares = group.gathered(self._share(trainer))
        return {} if None in shares else over_rows([score for share in shares for score in share])

    def _share(self, trainer: "TuneTrainer") -> list[dict[str, Ratio]] | None:
        """Return the scores of this process's rows; None where the run is to stop, or no memory is left for a row."""
        if trainer.is_stopping:
            return None
        if not self.indices:
            return None if self.is_off else []
        model, was_training = trainer.model, trainer.model.training
        model.eval()
        dtype = DTYPES[self.plan.autocast_dtype] if self.plan.autocast_dtype else None
        autocast = torch.autocast(self.plan.device, dtype=dtype, enabled=dtype is not None)
        self._give_back()
        try:
            together = self._together(model)
            with autocast, trainer.progress("answering rows", len(self.indices)) as advance:
                return self._scores(model, together, advance, lambda: trainer.is_stopping)
        except torch.OutOfMemoryError:
            pass  # said outside of the handler, which holds what the forward pass had made
        finally:
            model.train(was_training)
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

    def _together(self, model: nn.Module) -> Together:
        """Return how many rows are answered at once: on a card within what a training step has taken beside weights."""
        together = together_for(self.plan)
        if self.plan.device != "cuda":
            return together
        if not self.has_trained:
            return Together(1)
        if not self.is_bounded:
            row_bytes, room_bytes = row_bytes_of(model, self.limit), SHARE_FOR_CACHE * taken_by_a_step()
            lengths = {index: self.rows.prompt(index).labels.shape[1] for index in self.indices}
            within = [index for index in self.indices if row_bytes(lengths[index]) <= room_bytes]
            self._keep(within, "the others would take more memory than a training step")
            self.is_bounded = True
        return Together(together.most_rows, taken_by_a_step)

    def _keep(self, indices: list[int], why: str) -> None:
        if len(indices) < len(self.indices):
            of_all = f"{len(indices):,} of {count(len(self.indices), 'held-out row')}"
            self.note(f"{of_all} {'is' if len(indices) == 1 else 'are'} answered at each evaluation: {why}")
            self.indices = indices

    def _give_back(self) -> None:
        """Leave no blocks of other sizes in the allocator, neither to the answers nor to the training."""
        if self.plan.device == "cuda":
            torch.cuda.empty_cache()


def taken_by_a_step() -> int:
    """Return the bytes that the run has had allocated at once, beside what it has allocated now."""
    return torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
