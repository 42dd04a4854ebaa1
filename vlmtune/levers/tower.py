"""Tower: the frozen vision tower in 4 bits."""

from typing import TYPE_CHECKING

from vlmtune.config.schema import TrainingConfig
from vlmtune.config.values import Values, as_yaml
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.base import TOWER as OF_TOWER
from vlmtune.levers.base import Choice, Decision, GivesUp, Lever, Saving
from vlmtune.levers.method import AS_IN_FILES

if TYPE_CHECKING:
    from vlmtune.plan.types import Device

KEY = "training.quantization.quantize_vision_tower"


def _decide(config: TrainingConfig, model: ModelFacts, device: "Device") -> Decision:
    wish = config.training.quantization.quantize_vision_tower
    if files := model.prequantised:
        packed = files.packs(model.family.vision)
        return Decision({}, () if packed == wish else (Choice(KEY, as_yaml(packed), AS_IN_FILES),))
    if config.training.method != "qlora" or wish:
        return Decision({})
    return Decision({"unquantized": (model.family.vision, *model.family.projector)})


def _four_bits(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    applies = config.training.method == "qlora" and not config.training.quantization.quantize_vision_tower
    applies = applies and config.data.cache_features is not True  # then it is not on the card
    return [{KEY: True}] if applies and not (model and model.prequantised) else []


def _more(config: TrainingConfig, model: ModelFacts | None) -> list[Values]:
    packs = config.training.method == "qlora" and config.training.quantization.quantize_vision_tower
    return [{KEY: False}] if packs and not (model and model.prequantised) else []


TOWER = Lever(
    name="Vision tower in 4 bits",
    keys=(KEY,),
    costs="rounding of the frozen tower and projector",
    decide=_decide,
    savings=(
        Saving(GivesUp.TOWER_ROUNDING, "the frozen vision tower in 4 bits: rounded", _four_bits, spares=OF_TOWER),
    ),
    more=_more,
)
