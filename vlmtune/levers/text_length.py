"""Text length: texts over a limit are cut from the end of their last answer."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from vlmtune.config.schema import TrainingConfig
from vlmtune.config.values import Values
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.base import WORK, Decision, GivesUp, Lever, Saving

if TYPE_CHECKING:
    from vlmtune.plan.types import Device

LENGTH, TRUNCATION = "data.max_length", "data.truncation"
STEP = 7 / 8
MULTIPLE = 16
REASON = "texts over this are cut from the end of their last answer, and counted"


def _decide(config: TrainingConfig, model: ModelFacts, device: "Device") -> Decision:
    return Decision({"max_length": config.data.max_length, "truncation": config.data.truncation})


def _down_to(least: int) -> Callable[[TrainingConfig, ModelFacts | None, int], list[Values]]:
    def steps(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
        length = min(config.data.max_length, text_tokens)
        found = []
        while length > least:
            length = max(least, int(length * STEP) // MULTIPLE * MULTIPLE)
            found.append({LENGTH: length, TRUNCATION: "cut"})
        return found

    return steps


TEXT_LENGTH = Lever(
    name="Length of texts",
    keys=(LENGTH, TRUNCATION),
    costs="the ends of long answers",
    decide=_decide,
    fields=("max_length", "truncation"),
    savings=(
        Saving(GivesUp.LONG_TEXTS, REASON, _down_to(256), spares=WORK),
        Saving(GivesUp.SHORT_TEXTS, REASON, _down_to(128), spares=WORK),
    ),
)
