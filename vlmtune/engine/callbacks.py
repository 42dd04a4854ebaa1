"""What watches a run: the recorder (log, live view), the check after the first step, and Ctrl-C."""

import dataclasses
import signal
import time
from types import FrameType

import torch
from torch import nn
from transformers import TrainerCallback

from vlmtune.engine.monitor import LiveView
from vlmtune.engine.sensors import read_gpu
from vlmtune.engine.trainer import Work
from vlmtune.errors import VlmtuneError
from vlmtune.models.build import base_of
from vlmtune.models.families.base import Family
from vlmtune.report import RunFolder, StepRecord


class Recorder(TrainerCallback):
    """Writes every logged step to `log.jsonl` and shows it."""

    def __init__(self, folder: RunFolder, view: LiveView, work: Work, on_gpu: bool) -> None:
        self.folder = folder
        self.view = view
        self.work = work
        self.on_gpu = on_gpu
        self.records: list[StepRecord] = folder.read_log()
        self.totals = Work()
        self.seconds = 0.0

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.started = self.last = time.perf_counter()
        self.first_step = state.global_step
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if "loss" in logs:
            self._add(self._record(state, logs))
        elif "eval_loss" in logs and self.records:
            self._add(dataclasses.replace(self.records[-1], eval_loss=logs["eval_loss"]))

    def _add(self, record: StepRecord) -> None:
        self.records.append(record)
        self.folder.append_log(record)
        self.view.update(record)

    def _record(self, state, logs: dict) -> StepRecord:
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        elapsed = now - self.started
        done = state.global_step - self.first_step
        work = self._take_work()
        gpu = read_gpu() if self.on_gpu else None
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
            elapsed_s=elapsed,
            eta_s=elapsed / max(1, done) * (state.max_steps - state.global_step),
            gpu_memory_bytes=torch.cuda.memory_reserved() if self.on_gpu else None,
            gpu_peak_bytes=torch.cuda.max_memory_reserved() if self.on_gpu else None,
            gpu_limit_bytes=torch.cuda.get_device_properties(0).total_memory if self.on_gpu else None,
            gpu_temperature_c=gpu.temperature_c if gpu else None,
        )

    def _take_work(self) -> Work:
        """Return the work since the last record and add it to the totals."""
        work = Work()
        for name in vars(work):
            value = getattr(self.work, name)
            setattr(work, name, value)
            setattr(self.totals, name, getattr(self.totals, name) + value)
            setattr(self.work, name, type(value)())
        return work

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self._take_work()
        self.seconds = time.perf_counter() - self.started


class FirstStepCheck(TrainerCallback):
    """After the first step: every part that is to learn had a gradient, and no frozen tensor changed."""

    def __init__(self, model: nn.Module, family: Family) -> None:
        self.model = model
        self.family = family
        self.frozen: dict[str, int] | None = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.frozen = {name: _digest(parameter) for name, parameter in self._parameters(False)}

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        if self.frozen is None:
            return
        parts: dict[str, bool] = {}
        for name, parameter in self._parameters(True):
            part = self.family.part_of(name)
            parts[part] = parts.get(part, False) or (parameter.grad is not None and bool(parameter.grad.any()))
        silent = [part for part, learned in parts.items() if not learned]
        if silent:
            raise VlmtuneError(
                f"the first step gave no gradient to: {', '.join(silent)}",
                "this part would not learn; please report the model and config",
            )

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.frozen is None:
            return
        changed = [name for name, parameter in self._parameters(False) if _digest(parameter) != self.frozen[name]]
        self.frozen = None
        if changed:
            raise VlmtuneError(
                f"the first step changed {len(changed)} tensors that are frozen, such as {changed[0]}",
                "please report the model and config",
            )

    def _parameters(self, trainable: bool):
        for name, parameter in base_of(self.model).named_parameters():
            if parameter.requires_grad == trainable:
                yield name, parameter


def _digest(tensor: torch.Tensor) -> int:
    """A sum over the tensor's bytes, place by place of each number: any step of an optimizer changes it."""
    words = tensor.detach().contiguous().view(-1).view(torch.uint8)
    return int(words[::2].sum(dtype=torch.int64)) * 1_000_003 + int(words[1::2].sum(dtype=torch.int64))


class StopOnInterrupt(TrainerCallback):
    """Ctrl-C once: finish the step, write a checkpoint, stop. Twice: stop now."""

    def __init__(self, view: LiveView) -> None:
        self.view = view
        self.stopped = False
        self._previous = signal.getsignal(signal.SIGINT)

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        signal.signal(signal.SIGINT, self._first)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.stopped:
            control.should_save = control.should_training_stop = True

    def restore(self) -> None:
        """Give Ctrl-C back to whoever had it before."""
        signal.signal(signal.SIGINT, self._previous)

    def _first(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.view.note("stopping after this step with a checkpoint; Ctrl-C again stops now")
