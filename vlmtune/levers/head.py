"""Head: the frozen output head in 8 or in 4 bits."""

from typing import TYPE_CHECKING

from vlmtune.config.schema import TrainingConfig
from vlmtune.config.values import Values, as_yaml
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.base import HEAD as OF_HEAD
from vlmtune.levers.base import UNPACKED, Choice, Decision, GivesUp, Lever, Saving
from vlmtune.levers.method import AS_IN_FILES

if TYPE_CHECKING:
    from vlmtune.plan.types import Device

KEY = "training.quantization.quantize_head"
IN_8_BITS = "8bit"
SHARED = "the head shares the embedding's weights, which are looked up by row and stay as they are"


def _decide(config: TrainingConfig, model: ModelFacts, device: "Device") -> Decision:
    if config.training.method != "qlora":
        return Decision({})
    wish = config.training.quantization.quantize_head
    head, choices = _possible(wish, model), ()
    if head != wish:
        choices = (Choice(KEY, as_yaml(head), SHARED if model.shares_embedding else AS_IN_FILES),)
    unpacked = () if head is True or model.prequantised else (model.family.head,)
    return Decision({"unquantized": unpacked, "head_8bit": head == IN_8_BITS}, choices)


def _possible(wish: bool | str, model: ModelFacts) -> bool | str:
    """Return what of a wish the model allows: files in 4 bits stay, and what they leave in 16 may be in 8."""
    if model.prequantised and (model.prequantised.packs(model.family.head) or wish is True):
        return model.prequantised.packs(model.family.head)
    return False if model.shares_embedding else wish


def _now(config: TrainingConfig, model: ModelFacts | None) -> bool | str | None:
    """Return what the head is; None where no lever can change it."""
    if config.training.method != "qlora" or (model and model.shares_embedding):
        return None
    if model and model.prequantised and model.prequantised.packs(model.family.head):
        return None
    return config.training.quantization.quantize_head


def _eight_bits(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    return [{KEY: IN_8_BITS}] if _now(config, model) is False else []


def _four_bits(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    can = _now(config, model) in (False, IN_8_BITS) and not (model and model.prequantised)
    return [{KEY: True}] if can else []


def _more(config: TrainingConfig, model: ModelFacts | None) -> list[Values]:
    now = _now(config, model)
    return [{KEY: False}] * (now in (True, IN_8_BITS)) + [{KEY: IN_8_BITS}] * (now is True)


_SPARES = (*OF_HEAD, *UNPACKED)
"""Of one in 8 bits, a piece is unpacked at a time."""

HEAD = Lever(
    name="Bits of the output head",
    keys=(KEY,),
    costs="rounding of the frozen head, to 8 or to 4 bits",
    decide=_decide,
    fields=("head_8bit",),
    savings=(
        Saving(GivesUp.HEAD_ROUNDING, "the frozen output head in 8 bits: rounded", _eight_bits, spares=_SPARES),
        # Unpacked at the peak, it can take more than it saves.
        Saving(
            GivesUp.HEAD_ROUNDING,
            "the frozen output head in 4 bits: rounded",
            _four_bits,
            spares=_SPARES,
            may_cost_memory=True,
        ),
    ),
    more=_more,
)
