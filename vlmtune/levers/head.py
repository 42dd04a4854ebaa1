"""Head: the frozen output head in 4 bits."""

from typing import TYPE_CHECKING

from vlmtune.config.schema import TrainingConfig
from vlmtune.config.values import Values, as_yaml
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.base import Choice, Decision, GivesUp, Lever, Saving
from vlmtune.levers.method import AS_IN_FILES

if TYPE_CHECKING:
    from vlmtune.plan.types import Device

KEY = "training.quantization.quantize_head"


def _decide(config: TrainingConfig, model: ModelFacts, device: "Device") -> Decision:
    if files := model.prequantised:
        packed = files.packs(model.family.head)
        agrees = packed == config.training.quantization.quantize_head
        return Decision({}, () if agrees else (Choice(KEY, as_yaml(packed), AS_IN_FILES),))
    if config.training.method != "qlora":
        return Decision({})
    packs, choices = config.training.quantization.quantize_head, ()
    if packs and model.shares_embedding:
        packs = False
        reason = "the head shares the embedding's weights, which are looked up by row and stay as they are"
        choices = (Choice(KEY, "false", reason),)
    return Decision({"unquantized": () if packs else (model.family.head,)}, choices)


def _four_bits(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    applies = config.training.method == "qlora" and not config.training.quantization.quantize_head
    can = model is None or not (model.shares_embedding or model.prequantised)
    return [{KEY: True}] if applies and can else []


def _more(config: TrainingConfig, model: ModelFacts | None) -> list[Values]:
    packs = config.training.method == "qlora" and config.training.quantization.quantize_head
    return [{KEY: False}] if packs and not (model and model.prequantised) else []


HEAD = Lever(
    name="Output head in 4 bits",
    keys=(KEY,),
    costs="rounding of the frozen head",
    decide=_decide,
    savings=(
        # Unpacked at the peak, it can take more than it saves.
        Saving(GivesUp.HEAD_ROUNDING, "the frozen output head in 4 bits: rounded", _four_bits, may_cost_memory=True),
    ),
    more=_more,
)
