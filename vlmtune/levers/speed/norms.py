"""Norms: frozen RMS norms in one kernel, in place of the many that the library's code makes.

What calls it is models/speed/norms.py, which imports torch.
"""

from typing import TYPE_CHECKING

from vlmtune.config.schema import TrainingConfig
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.base import Choice, Decision, Lever, OnResume

if TYPE_CHECKING:
    from vlmtune.plan.types import Device

KEY = "hardware.fused_norms"
AUTO = True
"""What `auto` is: a card has shown that it is faster, with equal losses, and takes what was estimated
(tests/gpu/measured/fused-packs.json)."""


def _decide(config: TrainingConfig, model: ModelFacts, device: "Device") -> Decision:
    wish, reason = config.hardware.fused_norms, _why_not(config, device)
    fused = AUTO if wish == "auto" else wish
    choices = (Choice(KEY, "false", f"{reason}: norms stay the library's"),) if reason and wish is True else ()
    return Decision({"fused_norms": fused and reason is None}, choices)


def _why_not(config: TrainingConfig, device: "Device") -> str | None:
    if device.kind == "cpu":
        return "training runs on the CPU, which has no such kernel"
    if config.training.method == "full":
        return "method full trains them in fp32"
    return None


NORMS = Lever(
    name="Norms in one kernel",
    keys=(KEY,),
    costs="a rounding less than in the library's code: not the same bits",
    decide=_decide,
    fields=("fused_norms",),
    on_resume=OnResume.FREE,
    rounds=True,
)
