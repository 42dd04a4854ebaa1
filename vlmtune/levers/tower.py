"""Tower: the frozen vision tower in 4 bits."""

from typing import TYPE_CHECKING

from vlmtune.config.schema import TrainingConfig
from vlmtune.config.values import Values
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.base import Decision, GivesUp, Lever, Saving

if TYPE_CHECKING:
    from vlmtune.plan.types import Device

KEY = "training.quantization.quantize_vision_tower"


def _decide(config: TrainingConfig, model: ModelFacts, device: "Device") -> Decision:
    if config.training.method != "qlora" or config.training.quantization.quantize_vision_tower:
        return Decision({})
    return Decision({"unquantized": (model.family.vision, *model.family.projector)})


def _four_bits(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    applies = config.training.method == "qlora" and not config.training.quantization.quantize_vision_tower
    applies = applies and config.data.cache_features is not True  # then it is not on the card
    return [{KEY: True}] if applies else []


def _more(config: TrainingConfig, model: ModelFacts | None) -> list[Values]:
    packs = config.training.method == "qlora" and config.training.quantization.quantize_vision_tower
    return [{KEY: False}] if packs else []


TOWER = Lever(
    name="Vision tower in 4 bits",
    keys=(KEY,),
    costs="rounding of the frozen tower and projector",
    decide=_decide,
    savings=(Saving(GivesUp.TOWER_ROUNDING, "the frozen vision tower in 4 bits: rounded", _four_bits),),
    more=_more,
)
