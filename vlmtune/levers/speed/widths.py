"""Widths: frozen MLPs whose width GPUs multiply slowly compute with the next one that they multiply fast.

What computes them is models/speed/widths.py, which imports torch.
"""

from typing import TYPE_CHECKING

from vlmtune.config.schema import TrainingConfig
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.base import Decision, Lever, OnResume

if TYPE_CHECKING:
    from vlmtune.plan.types import Device

KEY = "hardware.align_widths"
AUTO = True
"""What `auto` is on a GPU."""


def _decide(config: TrainingConfig, model: ModelFacts, device: "Device") -> Decision:
    wish = config.hardware.align_widths
    aligned = AUTO and device.kind == "cuda" if wish == "auto" else wish
    return Decision({"align_widths": aligned and config.training.method != "full"})


def _refused(config: TrainingConfig) -> list[str]:
    if config.hardware.align_widths is True and config.training.method == "full":
        return [f"{KEY}: method full trains the weights, and only frozen ones are filled up; leave it out"]
    return []


WIDTHS = Lever(
    name="Widths filled up",
    keys=(KEY,),
    costs="a copy of the weight for each product: far less than it saves where a width is odd, nothing elsewhere",
    decide=_decide,
    fields=("align_widths",),
    on_resume=OnResume.FREE,
    excludes=_refused,
)
