"""Varlen: rows of a pack, and windows or images of a tower, attend in one call of a kernel that knows where they begin.

What calls it is models/attention/varlen.py.
"""

from typing import TYPE_CHECKING

from vlmtune.config.schema import TrainingConfig
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.base import Choice, Decision, Lever, OnResume
from vlmtune.levers.speed.packing import packs_rows

if TYPE_CHECKING:
    from vlmtune.plan.types import Device

KEY = "hardware.varlen_attention"
AUTO = True
"""What `auto` is: a card has shown that it is faster, with equal losses (tests/gpu/measured/packing.json)."""


def _decide(config: TrainingConfig, model: ModelFacts, device: "Device") -> Decision:
    wish = config.hardware.varlen_attention
    if not (AUTO if wish == "auto" else wish):
        return Decision({"varlen_attention": False})
    if reason := _why_not(config, model, device):
        choices = (Choice(KEY, "false", f"{reason}: rows and windows attend without it"),) if wish is True else ()
        return Decision({"varlen_attention": False}, choices)
    return Decision({"varlen_attention": True})


def _why_not(config: TrainingConfig, model: ModelFacts, device: "Device") -> str | None:
    if device.kind == "cpu":
        return "training runs on the CPU, which has no such kernel"
    if not device.bf16:
        return f"{device.name} has no such kernel, which Ampere and newer cards have"
    return why_never(config, model)


def why_never(config: TrainingConfig, model: ModelFacts) -> str | None:
    """Return why no card's kernel can be used; None where some can."""
    if config.hardware.mixed_precision == "no":
        return "the kernel computes in 16 bits"
    if model.caps_attention:
        return "the model caps its attention scores"
    if model.family.text in model.family.eager:
        return "transformers has only eager attention for the language model"
    if not model.family.tower_loops and not packs_rows(config, model):
        return "nothing is packed, and the tower calls attention once a layer"
    return None


VARLEN = Lever(
    name="One attention call for all rows",
    keys=(KEY,),
    costs="nothing: where the kernel is missing, SDPA attends row by row",
    decide=_decide,
    fields=("varlen_attention",),
    on_resume=OnResume.FREE,
)
