"""Joined constants: those of a layer's 4-bit weights are unpacked together, not weight by weight.

What unpacks them is models/speed/constants.py, which imports torch.
"""

from typing import TYPE_CHECKING

from vlmtune.config.schema import TrainingConfig
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.base import Decision, Lever, OnResume

if TYPE_CHECKING:
    from vlmtune.plan.types import Device

KEY = "hardware.joined_constants"
AUTO = True
"""What `auto` is on a GPU, where it is possible."""


def _decide(config: TrainingConfig, model: ModelFacts, device: "Device") -> Decision:
    wish = config.hardware.joined_constants
    joined = AUTO and device.kind == "cuda" if wish == "auto" else wish
    return Decision({"joined_constants": joined and not _why_not(config)})


def _why_not(config: TrainingConfig) -> str | None:
    """Return why there is nothing to join."""
    if config.training.method != "qlora" or not config.training.quantization.load_in_4bit:
        return "only weights in 4 bits have constants; use training.method: qlora"
    if not config.training.quantization.bnb_4bit_use_double_quant:
        return "without training.quantization.bnb_4bit_use_double_quant constants are not packed"
    return None


def _refused(config: TrainingConfig) -> list[str]:
    reason = _why_not(config)
    return [f"{KEY}: {reason}"] if config.hardware.joined_constants is True and reason else []


CONSTANTS = Lever(
    name="Constants of 4 bits joined",
    keys=(KEY,),
    costs="the constants of one layer in 32 bits, a 32nd of its weights in 16",
    decide=_decide,
    fields=("joined_constants",),
    on_resume=OnResume.FREE,
    excludes=_refused,
)
