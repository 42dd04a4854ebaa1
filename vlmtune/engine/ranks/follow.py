"""One process decides, all do: when to log, evaluate, write a checkpoint and stop."""

import time

from transformers import TrainerCallback, TrainerControl

from vlmtune.engine.callbacks import StopOnInterrupt
from vlmtune.engine.ranks import group

DECISIONS = ("should_training_stop", "should_epoch_stop", "should_save", "should_evaluate", "should_log")


class FollowFirst(TrainerCallback):
    """After each step and evaluation all take the first process's decisions: it has the clock and the signals."""

    def __init__(self, interrupt: StopOnInterrupt) -> None:
        """To be the last of a trainer's callbacks."""
        self.interrupt = interrupt

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self._follow(control)

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        self._follow(control)

    def _follow(self, control: TrainerControl) -> None:
        decided, self.interrupt.stopped = group.told_by_first(
            ([getattr(control, name) for name in DECISIONS], self.interrupt.stopped)
        )
        for name, value in zip(DECISIONS, decided, strict=True):
            setattr(control, name, value)


class SaveByMinutes(TrainerCallback):
    """Asks for a checkpoint after the step in which so many minutes have gone by since the last one."""

    def __init__(self, minutes: float) -> None:
        self.seconds = minutes * 60

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.saved = time.monotonic()  # which nobody sets, as clocks are

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if time.monotonic() - self.saved >= self.seconds:
            control.should_save = True

    def on_save(self, args, state, control, **kwargs) -> None:
        self.saved = time.monotonic()
