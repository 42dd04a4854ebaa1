"""What watches a run: the recorder (log, live view), checks of what it learns, the clock of checkpoints, Ctrl-C."""

import dataclasses
import os
import signal
import time
from types import FrameType

import torch
from transformers import TrainerCallback

from vlmtune.compat.trainer import COMPUTE_STEPS, EXPORTABLE_STATE, STATEFUL_CALLBACKS
from vlmtune.engine.memory import memory_now
from vlmtune.engine.monitor import LiveView
from vlmtune.engine.ranks import group
from vlmtune.engine.trainer import TuneTrainer, Work
from vlmtune.errors import VlmtuneError
from vlmtune.families.base import Family
from vlmtune.hardware.at_hand import reading_at_hand
from vlmtune.models.build import base_of
from vlmtune.models.streaming import read_parameter
from vlmtune.plan.length import evaluations_from
from vlmtune.runs.folder import RunFolder
from vlmtune.runs.records import GpuAtStep, StepRecord
from vlmtune.signals import heed, stopping_signals

DIGEST_BYTES = 2**20
EVALUATED_IN_TRAINED = 3
"""Rows that are evaluated while one is trained on, about."""
NAMES_IN_CHECKPOINTS = ("Recorder",)
"""What `Recorder` was called in checkpoints of earlier versions, from 0.1.0 on; who renames it adds the old name."""


class Recorder(TrainerCallback, EXPORTABLE_STATE.get()):
    """Writes every logged step to `log.jsonl` and shows it; its totals are kept in the checkpoints."""

    def __init__(self, folder: RunFolder, view: LiveView, trainer: TuneTrainer) -> None:
        self.folder = folder
        self.view = view
        self.trainer = trainer
        self.on_gpu = trainer.plan.device == "cuda"
        estimated = folder.read_estimate() if self.on_gpu else None
        self.estimate_bytes = estimated.peak_reserved_bytes if estimated else None
        self.predicted_step_s = estimated.time.step_s if estimated and estimated.time else None
        self.records: list[StepRecord] = folder.read_log()
        self.totals = Work()
        self.seconds_before = 0.0
        self.seconds = 0.0
        self.started = time.perf_counter()

    def state(self) -> dict:
        """Return what a checkpoint keeps of this object."""
        totals = dataclasses.asdict(self.totals + self.trainer.work)
        return {"args": {}, "attributes": {"totals": totals, "seconds": self._elapsed()}}

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.started = self.last = time.perf_counter()
        self.first_step = state.global_step
        # A resumed state brings the intervals of its checkpoint, and those may have been changed since.
        COMPUTE_STEPS.read(state)(args, state.max_steps)
        if state.global_step:
            saved = self._kept_in(STATEFUL_CALLBACKS.read(state))["attributes"]
            self.totals, self.seconds_before = Work(**saved["totals"]), saved["seconds"]
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        if self.predicted_step_s:
            self.view.expect(self.predicted_step_s * (state.max_steps - state.global_step))
        if self._is_evaluation_due(state):
            self.trainer.evaluate()

    def _is_evaluation_due(self, state) -> bool:
        """Return whether the run was stopped at a step at which it would have evaluated, the last one left aside."""
        step, every = state.global_step, self.trainer.plan.eval_steps
        done = any(record.step == step and record.eval_loss is not None for record in self.records)
        return bool(every and 0 < step < state.max_steps) and step % every == 0 and not done

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.trainer.refuse_no_number()  # before anything of the step is written
        # An evaluation is written into the record of its own step, so that step needs one.
        if control.should_evaluate or control.should_training_stop:
            control.should_log = True

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if "loss" in logs:
            self._add(self._record(state, logs))
        elif "eval_loss" in logs:
            last, eta_s = self.records[-1], self._eta_s(state, is_evaluated=True)
            self._add(dataclasses.replace(last, **self.trainer.evaluated, elapsed_s=self._elapsed(), eta_s=eta_s))
            self.last = time.perf_counter()

    def _kept_in(self, states: dict[str, dict]) -> dict:
        """Return what the checkpoint keeps of this object, now under the name that its class has today.

        Trainer keeps it by that name, and finds no place for it in the next checkpoint where the name is new.
        """
        name = type(self).__name__
        kept = next((states.pop(old) for old in (name, *NAMES_IN_CHECKPOINTS) if old in states), None)
        assert kept is not None, f"the checkpoint keeps {sorted(states)}, nothing of {name}"
        states[name] = kept
        return kept

    def _elapsed(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def _add(self, record: StepRecord) -> None:
        self.records.append(record)
        if group.is_first():
            self.folder.append_log(record)
        self.view.update(record)

    def _record(self, state, logs: dict) -> StepRecord:
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        work = self._take_work()
        gpu = reading_at_hand() if self.on_gpu else None
        return StepRecord(
            step=state.global_step,
            total_steps=state.max_steps,
            epoch=state.epoch,
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            grad_norm=logs.get("grad_norm"),
            tokens_per_s=work.tokens / seconds,
            samples_per_s=work.rows / seconds,
            data_wait_share=min(1.0, work.waited_s / seconds),
            elapsed_s=self._elapsed(),
            eta_s=self._eta_s(state, is_evaluated=False),
            gpu_temperature_c=gpu.temperature_c if gpu else None,
            gpu_estimate_bytes=self.estimate_bytes,
            **memory_now(self.on_gpu),
            gpus=self._all_gpus(seconds),
        )

    def _all_gpus(self, seconds: float) -> tuple[GpuAtStep, ...] | None:
        """Return what each process's GPU has taken in all, and waited in so many seconds."""
        if group.size() == 1:
            return None
        peak_bytes = torch.cuda.max_memory_reserved() if self.on_gpu else None
        return tuple(group.gathered(GpuAtStep(peak_bytes, min(1.0, self.trainer.waiting.take() / seconds))))

    def _eta_s(self, state, *, is_evaluated: bool) -> float:
        """Return the time that steps and evaluations will take by those that were.

        Before the first evaluation a row of it counts a third of a trained one: forward without recomputing and
        without a backward pass.
        """
        evaluations_s, plan, num_rows = self.trainer.evaluations_s, self.trainer.plan, len(self.trainer.eval_dataset)
        steps = state.global_step - self.first_step
        if not steps:
            return self.records[-1].eta_s
        step_s = (time.perf_counter() - self.started - sum(evaluations_s)) / steps
        a_row_s = step_s / plan.rows_per_step / EVALUATED_IN_TRAINED
        one_s = sum(evaluations_s) / len(evaluations_s) if evaluations_s else a_row_s * num_rows
        first = state.global_step + is_evaluated
        left = evaluations_from(first, state.max_steps, plan.eval_steps) if num_rows else 0
        return step_s * (state.max_steps - state.global_step) + one_s * left

    def _take_work(self) -> Work:
        """Return the work since the last record and add it to the totals."""
        work, self.trainer.work = self.trainer.work, Work()
        self.totals += work
        return work

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self._take_work()
        self.seconds = self._elapsed()


class FirstStepCheck(TrainerCallback):
    """After the first step: every part that is to learn had a gradient, and no frozen tensor changed.

    A part is asked at the first step that can teach it: the tower's at the first step with an image.
    """

    def __init__(self, trainer: TuneTrainer, family: Family) -> None:
        self.trainer = trainer
        self.family = family
        self.untaught: set[str] = set()
        self.frozen: dict[str, int] = {}

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.untaught = {self.family.part_of(name) for name, _ in self._parameters(True)}
        self.frozen = {name: digest(parameter) for name, parameter in self._parameters(False)}

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        if not self.untaught:
            return
        taught = {
            self.family.part_of(name)
            for name, parameter in self._parameters(True)
            if parameter.grad is not None and bool(parameter.grad.any())
        }
        without_image = set() if self.trainer.step_has_images else {"vision", "projector"}
        silent = sorted(self.untaught - taught - without_image)
        self.untaught &= without_image - taught
        if silent:
            raise VlmtuneError(
                f"step {state.global_step + 1} gave no gradient to: {', '.join(silent)}",
                "this part would not learn; please report the model and config",
            )

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if not self.frozen:
            return
        changed = [name for name, parameter in self._parameters(False) if digest(parameter) != self.frozen[name]]
        self.frozen = {}
        if changed:
            raise VlmtuneError(
                f"step {state.global_step} changed {len(changed)} tensors that are frozen, such as {changed[0]}",
                "please report the model and config",
            )

    def _parameters(self, trainable: bool):
        base = base_of(self.trainer.model)
        for name, parameter in base.named_parameters():
            if parameter.requires_grad == trainable:
                yield name, read_parameter(base, parameter)


class MovedCheck(TrainerCallback):
    """At the end: something of what learns has changed; a run that taught nothing does not end as one that did."""

    def __init__(self, trainer: TuneTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.first_step, self.before = state.global_step, self._digests()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        if state.global_step > self.first_step and self._digests() == self.before:
            raise VlmtuneError(
                f"nothing was learned: after {state.global_step} steps every trained weight is what it was",
                "gradients that overflow (hardware.mixed_precision) or a learning rate too small to be felt do that",
            )

    def _digests(self) -> list[int]:
        return [digest(parameter) for parameter in self.trainer.model.parameters() if parameter.requires_grad]


def digest(tensor: torch.Tensor) -> int:
    """Return a sum over the tensor's bytes, place by place: any step of an optimizer changes it.

    A MiB at a time: a sum over all bytes at once would convert them first, eight times their memory.
    """
    places = tensor.detach().contiguous().view(-1).view(torch.uint8)
    total = 0
    for piece in places.split(DIGEST_BYTES):
        total += int(piece[::2].sum(dtype=torch.int64)) * 1_000_003 + int(piece[1::2].sum(dtype=torch.int64))
    return total


class StopOnInterrupt(TrainerCallback):
    """Ctrl-C, SIGTERM or SIGHUP: finish the step or evaluation, write a checkpoint, stop. Ctrl-C again: stop now."""

    def __init__(self, view: LiveView, trainer: TuneTrainer) -> None:
        self.view = view
        self.trainer = trainer
        self.stopped = False
        self._process = os.getpid()
        self._previous = {number: signal.getsignal(number) for number in stopping_signals()}

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        for number in self._previous:
            signal.signal(number, self._stop)
        heed()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.stopped:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # made up for when the run goes on

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        if self.stopped:
            control.should_save = control.should_training_stop = True

    def restore(self) -> None:
        """Give the signals back to whoever had them before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        # A terminal sends Ctrl-C to the processes that read images too; they inherit this handler and must go on.
        # SIGTERM and SIGHUP come twice where a scheduler, or both shell and system, send them: only Ctrl-C is meant so.
        if os.getpid() != self._process or self.stopped:
            return
        self.stopped = self.trainer.is_stopping = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        why = "" if number == signal.SIGINT else f"{signal.Signals(number).name}: "
        running = "evaluation" if self.trainer.is_evaluating else "step"
        self.view.note(f"{why}stopping after this {running} with a checkpoint; Ctrl-C again stops now")
