"""Optimizer: AdamW with states in 32 or in 8 bits, which may lie in main memory."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from vlmtune.compat.bitsandbytes import IS_PAGED, SYNC_GPU
from vlmtune.config.schema import TrainingConfig
from vlmtune.config.values import Values, not_yet
from vlmtune.errors import VlmtuneError
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.base import LEARNING, Choice, Decision, GivesUp, Lever, OnResume, Saving

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vlmtune.plan.types import Device, RunPlan

KEY = "training.optim"


def _decide(config: TrainingConfig, model: ModelFacts, device: "Device") -> Decision:
    wish, choices = config.training.optim, ()
    if wish is None:
        wish = "paged_adamw_8bit" if device.kind == "cuda" else "adamw"
        reason = "8-bit states: a quarter of the memory" if device.kind == "cuda" else "training runs on the CPU"
        choices = (Choice(KEY, wish, reason),)
    if wish != "adamw" and device.kind == "cpu":
        raise VlmtuneError(f"{KEY}: {wish} needs a GPU, and none was found", f"leave {KEY} out, or use adamw")
    return Decision({"optimizer": wish}, choices)


def _paged(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    return [{KEY: "paged_adamw_8bit"}] if config.training.optim in ("adamw", "adamw_8bit") else []


def _more(config: TrainingConfig, model: ModelFacts | None) -> list[Values]:
    return [values for name in ("adamw", "adamw_8bit") if (values := not_yet(config, {KEY: name}))]


def build_optimizer(model: "nn.Module", plan: "RunPlan") -> "torch.optim.Optimizer":
    """Return AdamW over the trainable parameters; weight decay acts on matrices only, not on norms and biases."""
    import torch

    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": plan.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if plan.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=plan.learning_rate, fused=True)
    import bitsandbytes

    kinds = {"adamw_8bit": bitsandbytes.optim.AdamW8bit, "paged_adamw_8bit": bitsandbytes.optim.PagedAdamW8bit}
    return _not_waiting(kinds[plan.optimizer])(groups, lr=plan.learning_rate)


def _not_waiting(kind: type) -> type:
    """Return an optimizer of bitsandbytes that waits for the card when its states are asked for, not at each parameter.

    Its kernels follow each other; only who reads paged states from main memory, as a checkpoint does, has to wait.
    """

    class NotWaiting(kind):
        def step(self, closure: Callable | None = None) -> float | None:
            with SYNC_GPU.replaced(lambda parameter: None):
                return super().step(closure)

        def state_dict(self) -> dict:
            if IS_PAGED.read(self):
                SYNC_GPU(self.param_groups[0]["params"][0])
            return super().state_dict()

    return NotWaiting


OPTIMIZER = Lever(
    name="Optimizer states",
    keys=(KEY,),
    costs="rounding of the optimizer's states to 8 bits; paged ones may lie in main memory",
    decide=_decide,
    fields=("optimizer",),
    savings=(
        Saving(
            GivesUp.OPTIMIZER_ROUNDING, "8-bit optimizer states, which may lie in main memory", _paged, spares=LEARNING
        ),
    ),
    more=_more,
    on_resume=OnResume.UNTIL_CHECKPOINT,
)
