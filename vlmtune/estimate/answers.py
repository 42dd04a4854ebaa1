"""Answers without weights: of a tuned model, and of the one that learns, at an evaluation in training."""

import gc
import itertools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vlmtune.data.collate import WHERE, collate
from vlmtune.data.encode import Encoded
from vlmtune.engine.answers.held_out import asked
from vlmtune.engine.answers.together import MOST_ROWS, cache_token_bytes
from vlmtune.engine.evaluate import generated
from vlmtune.estimate.allocator.caching import EMPTY_CACHE, RESET_PEAK
from vlmtune.estimate.allocator.peaks import phases_of
from vlmtune.estimate.report import Phase
from vlmtune.estimate.simulate.device import as_on_device
from vlmtune.estimate.simulate.record import ACTIVATIONS, INPUTS, Hidden, Log, Recorder
from vlmtune.estimate.simulate.simulation import Batch, built, copied, named_modules, recorder_of
from vlmtune.estimate.simulate.weights import loading_of
from vlmtune.models.build import family_of
from vlmtune.plan.types import RunPlan

ANSWER_TOKENS = 256
"""What `vlmtune evaluate` lets a model write at most."""
HELD_OUT = "held-out answers"
"""The phase of a run's log; its key in what is allocated."""


@dataclass(frozen=True)
class HeldOutRows:
    """What is asked at each evaluation in training, as large as any of its rows."""

    longest: Encoded
    """Its answer is read like a question: no other row's question is longer than both."""
    max_new_tokens: int
    num_rows: int

    def record(self, model: nn.Module, plan: RunPlan, recorder: Recorder) -> int:
        """Record answering some of them at once, the model and its optimizer on the card; return how many.

        As many as take no more than the steps did, which there is room for anyway; one at least.
        """
        phases = [*phases_of(recorder.log).values()]
        between_bytes = phases[-1].allocated_at_end_bytes
        room_bytes = max(phase.peak_allocated_bytes for phase in phases if phase.name != "load") - between_bytes
        most_rows = 1 if family_of(plan).answers_alone else min(MOST_ROWS, self.num_rows)
        flops = recorder.log.flops
        a_row_bytes = self._record(1, model, plan, recorder) - between_bytes
        _take_back(recorder.log)
        rows = max(1, min(most_rows, room_bytes // a_row_bytes))
        while self._record(rows, model, plan, recorder) - between_bytes > room_bytes and rows > 1:
            _take_back(recorder.log)
            rows //= 2
        recorder.log.flops = flops  # of the steps alone
        return rows

    def _record(self, rows: int, model: nn.Module, plan: RunPlan, recorder: Recorder) -> int:
        """Record answering so many rows at once; return what is allocated at its peak."""
        recorder.log.begin(HELD_OUT)
        recorder.log.events.append(EMPTY_CACHE)
        held: list[int] = []

        def on_token(number: int) -> None:
            if number == 2:
                raise _Written
            between = max(0, self.max_new_tokens - 2)  # the first is chosen, the second is read by the model
            held.append(recorder.allocate(between * rows * cache_token_bytes(model), ACTIVATIONS, "keys and values"))

        prompts = self._prompts(rows)  # in main memory
        with asked(model, plan, "cpu"), named_modules(model, recorder), recorder:
            _record_answers(model, recorder, prompts, on_token)
        recorder.free(held[0])
        recorder.log.events.append(EMPTY_CACHE)
        return phases_of(recorder.log)[HELD_OUT].peak_allocated_bytes

    def _prompts(self, rows: int) -> Batch:
        """Return the batch; where there are several rows all but one are a token shorter, as rows differ."""
        batch = collate([self.longest] * rows, 0, on_left=True)
        batch["attention_mask"][1:, 0] = 0
        return {key: value for key, value in batch.items() if key not in (WHERE, "labels")}


def answering(plan: RunPlan, row: Batch, form: str | None, hidden: Hidden) -> Phase:
    """Return the peak of `vlmtune evaluate` on a row, question and answer read, an answer written.

    Two tokens are simulated: what the second one adds, each further one adds.
    """
    prompt = {name: tensor for name, tensor in row.items() if name != "labels"}
    phases = phases_of(simulate_answer(plan, Question(prompt, form), hidden, num_tokens=2))
    first, second = phases["token 1"], phases["token 2"]
    grown_bytes = (ANSWER_TOKENS - 2) * (second.peak_allocated_bytes - first.peak_allocated_bytes)
    peak = max(phases["prompt"].peak_allocated_bytes, second.peak_allocated_bytes + grown_bytes)
    return Phase("answering", peak, second.allocated_at_end_bytes + grown_bytes)


@dataclass(frozen=True)
class Question:
    """What a tuned model is asked."""

    prompt: Batch
    form: str | None = None
    """As in `Run`."""


def simulate_answer(plan: RunPlan, question: Question, hidden: Hidden, num_tokens: int) -> Log:
    """Return what a tuned model allocates to read a prompt and to write this many tokens, each a phase of the log."""
    model = built(replace(plan, sharded=False), question.form).eval()  # it is asked on one GPU
    recorder = recorder_of(model, plan, hidden)
    recorder.log.begin("load")
    loading_of(plan)(model, recorder)
    recorder.log.events += [EMPTY_CACHE, RESET_PEAK]

    def on_token(number: int) -> None:
        if number > num_tokens:
            recorder.stop()
            raise _Written
        recorder.log.begin(f"token {number}")

    with as_on_device(plan), named_modules(model, recorder), recorder:
        recorder.log.begin("prompt")
        _record_answers(model, recorder, question.prompt, on_token)
    return recorder.log


class _Written(Exception):
    """As many tokens as wanted are written."""


def _record_answers(model: nn.Module, recorder: Recorder, prompts: Batch, on_token: Callable[[int], None]) -> None:
    """Record answers to prompts; `on_token` is told the number of each token before the model reads it, and ends it."""
    numbers = itertools.count(1)

    def chosen(ids: Tensor, scores: Tensor, **kwargs) -> Tensor:
        on_token(next(numbers))
        return torch.zeros(len(ids), dtype=torch.bool)

    recorder.kind = INPUTS
    inputs = copied(prompts)
    recorder.kind = ACTIVATIONS
    with suppress(_Written):
        # The criterion ends it: values without storage never reach an end token or a comparison's yes.
        generated(model, inputs, max_new_tokens=10**6, pad_token_id=0, stopping_criteria=[chosen])
    del inputs
    gc.collect()


def _take_back(log: Log) -> None:
    """Forget the last phase, but for what is held on to behind it: some models keep positions of the last prompt."""
    _, start = log.phases.pop()
    last = log.events[start:]
    gone = {-handle for handle, _ in last if handle < 0} & {handle for handle, _ in last if handle > 0}
    log.events[start:] = [event for event in last if abs(event[0]) not in gone]
