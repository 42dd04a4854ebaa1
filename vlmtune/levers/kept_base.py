"""Kept base: what was quantised once is read from the user's cache at the next start."""

from typing import TYPE_CHECKING

from vlmtune.config.schema import TrainingConfig
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.base import Choice, Decision, Lever, OnResume
from vlmtune.levers.method import AS_IN_FILES

if TYPE_CHECKING:
    from vlmtune.plan.types import Device

KEY = "model.cache_quantized"
WRITTEN_AT_ONCE_BYTES = 2**29
"""Size of its files, unless one tensor is larger; writing one takes twice that of main memory."""


def _decide(config: TrainingConfig, model: ModelFacts, device: "Device") -> Decision:
    if config.model.cache_quantized and model.prequantised:
        return Decision({"cache_quantized": False}, (Choice(KEY, "false", AS_IN_FILES),))
    return Decision({"cache_quantized": config.model.cache_quantized})


def _excludes(config: TrainingConfig) -> list[str]:
    if config.model.cache_quantized and config.training.method != "qlora":
        return [f"{KEY}: method {config.training.method} quantises nothing; use method: qlora"]
    return []


KEPT_BASE = Lever(
    name="Base in 4 bits kept on disk",
    keys=(KEY,),
    costs="disk: a quarter of the model; the next start reads that, and no weight passes the card in 16 bits",
    decide=_decide,
    fields=("cache_quantized",),
    on_resume=OnResume.FREE,
    excludes=_excludes,
)
