"""Elementwise work: gated MLPs and rotary positions in one Triton kernel each, in place of the library's many.

What calls them is models/speed/gated.py and rotary.py, which import torch.
"""

from typing import TYPE_CHECKING

from vlmtune.config.schema import TrainingConfig
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.base import Choice, Decision, Lever, OnResume

if TYPE_CHECKING:
    from vlmtune.plan.types import Device

KEY = "hardware.fused_elementwise"
AUTO = True
"""What `auto` is: a card has shown that it is faster, with equal losses, and takes what was estimated
(tests/gpu/measured/fused-packs.json)."""


def _decide(config: TrainingConfig, model: ModelFacts, device: "Device") -> Decision:
    wish, reason = config.hardware.fused_elementwise, _why_not(device)
    fused = AUTO if wish == "auto" else wish
    tells = reason and fused and (wish is True or device.no_triton)
    choices = (Choice(KEY, "false", f"{reason}: the library's own code runs"),) if tells else ()
    return Decision({"fused_elementwise": fused and reason is None}, choices)


def _why_not(device: "Device") -> str | None:
    if device.kind == "cpu":
        return "training runs on the CPU, for which Triton makes no kernels"
    if not device.bf16:
        return f"Triton makes no kernels for {device.name}, but for Ampere and newer cards"
    return device.no_triton


ELEMENTWISE = Lever(
    name="Elementwise work in one kernel",
    keys=(KEY,),
    costs="seconds for compiling once a machine, and a rounding less than in the library's code: not the same bits",
    decide=_decide,
    fields=("fused_elementwise",),
    on_resume=OnResume.FREE,
    rounds=True,
)
