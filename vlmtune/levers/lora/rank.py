"""Rank: the size of the adapters, at the same scale."""

from typing import TYPE_CHECKING

from vlmtune.config.schema import TrainingConfig
from vlmtune.config.values import Values
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.base import KEPT, LEARNING, UNPACKED, Choice, Decision, GivesUp, Lever, Saving

if TYPE_CHECKING:
    from vlmtune.plan.types import Device

RANK, ALPHA = "training.lora.rank", "training.lora.alpha"
SMALLEST = 4
STARTED = "so it is in the adapter that the run starts from (model.adapter)"


def _decide(config: TrainingConfig, model: ModelFacts, device: "Device") -> Decision:
    lora, adapter = config.training.lora, model.adapter
    if adapter is None:
        return Decision({"lora_rank": lora.rank, "lora_alpha": lora.alpha})
    there = {RANK: (adapter.rank, lora.rank), ALPHA: (adapter.alpha, lora.alpha)}
    choices = [Choice(key, str(value), STARTED) for key, (value, wish) in there.items() if value != wish]
    return Decision({"lora_rank": adapter.rank, "lora_alpha": adapter.alpha}, tuple(choices))


def rank_of(config: TrainingConfig, rank: int) -> Values:
    """Return the values of a rank; alpha goes with it, so that the adapters keep their scale."""
    lora = config.training.lora
    return {RANK: rank, ALPHA: max(1, rank * lora.alpha // lora.rank)}


def _lower(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    rank, alpha = config.training.lora.rank, config.training.lora.alpha
    steps = []
    if model and model.adapter:
        return steps
    while config.training.method != "full" and rank // 2 >= SMALLEST:
        rank, alpha = rank // 2, max(1, alpha // 2)
        steps.append({RANK: rank, ALPHA: alpha})
    return steps


LORA_RANK = Lever(
    name="Rank of the adapters",
    keys=(RANK, ALPHA),
    costs="adapters that can learn less, at the same scale",
    decide=_decide,
    fields=("lora_rank", "lora_alpha"),
    savings=(
        Saving(
            GivesUp.RANK,
            "smaller adapters at the same scale; on all layers, as here, the rank matters little",
            _lower,
            spares=(*LEARNING, *KEPT, *UNPACKED),
        ),
    ),
)
