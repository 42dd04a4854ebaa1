"""transformers' schedules of the learning rate, one step ahead."""

from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments, get_scheduler


class Schedule(LambdaLR):
    """transformers' schedule, one step ahead: its warm-up starts at 0, and a step at 0 learns nothing.

    It is that of one step more, so that a decay reaches 0 after the last step and not before it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, args: TrainingArguments, num_steps: int) -> None:
        def rates(num_steps: int, warmup: int = args.get_warmup_steps(num_steps)) -> list[Callable[[int], float]]:
            return get_scheduler(args.lr_scheduler_type, optimizer, warmup, num_steps).lr_lambdas

        self.ahead, self.of_0_1_0 = 1, rates(num_steps)
        super().__init__(optimizer, [lambda step, rate=rate: rate(step + 1) for rate in rates(num_steps + 1)])

    def state_dict(self) -> dict:
        """Return what a checkpoint keeps."""
        return {name: value for name, value in super().state_dict().items() if name != "of_0_1_0"}

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on from a checkpoint; a run of version 0.1.0, which began at 0, as it began."""
        super().load_state_dict({"ahead": 0, **state_dict})
        if not self.ahead:
            self.lr_lambdas = self.of_0_1_0
