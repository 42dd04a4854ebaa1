"""Lean adapters: computed in the run's number format with few operations, in place of PEFT's fp32.

What computes them is models/lora/lean.py, which imports torch.
"""

from typing import TYPE_CHECKING

from vlmtune.config.schema import TrainingConfig
from vlmtune.config.values import as_yaml
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.base import Choice, Decision, Lever, OnResume

if TYPE_CHECKING:
    from vlmtune.plan.types import Device

KEY = "hardware.lean_lora"
AUTO = True
"""What `auto` is where it is possible: a row's kernels take 28 to 32 % less time on an H100 than by PEFT's forward."""
DROPS = "with training.lora.dropout PEFT's own forward runs, which knows dropout"


def _decide(config: TrainingConfig, model: ModelFacts, device: "Device") -> Decision:
    wish = config.hardware.lean_lora
    lean = AUTO if wish == "auto" else wish
    possible = config.training.method != "full" and not config.training.lora.dropout
    choices = (Choice(KEY, as_yaml(False), DROPS),) if lean and config.training.lora.dropout else ()
    return Decision({"lean_lora": lean and possible}, choices)


def _refused(config: TrainingConfig) -> list[str]:
    if config.hardware.lean_lora is True and config.training.method == "full":
        return [f"{KEY}: method full has no adapters; use training.method: qlora or lora"]
    return []


LEAN_LORA = Lever(
    name="Lean adapters",
    keys=(KEY,),
    costs="rounding of what adapters compute to the run's 16 bits, as of all else; their weights stay in fp32",
    decide=_decide,
    fields=("lean_lora",),
    on_resume=OnResume.FREE,
    excludes=_refused,
    rounds=True,
)
