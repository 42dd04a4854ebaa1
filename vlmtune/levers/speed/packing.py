"""Packing: rows behind each other in packs of so many tokens; as many rows a step, whatever the packs.

Which rows make a pack is data/batches/packs.py, that they do not see each other models/attention/packs.py.
"""

from typing import TYPE_CHECKING

from vlmtune.config.schema import TrainingConfig
from vlmtune.config.values import Values
from vlmtune.errors import VlmtuneError
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.base import WORK, Decision, GivesUp, Lever, OnResume, Saving, Spending
from vlmtune.levers.batch import batch_of, rows_per_step

if TYPE_CHECKING:
    from vlmtune.plan.types import Device

KEY, TOKENS = "training.packing", "training.pack_tokens"
DEFAULT_TOKENS = 2048
"""With as many, unpacking 4-bit weights and starting kernels take little of the time on most cards."""
FEWEST_TOKENS = 512
PACKS_TRIED = (2048, 4096, 8192, 16_384)
"""Where memory is left for them."""
AUTO = False
"""What `auto` is: true once a card has shown that packs are faster, and that the estimate holds."""


def _decide(config: TrainingConfig, model: ModelFacts, device: "Device") -> Decision:
    if config.training.packing is True and (reason := _why_not(model)):
        raise VlmtuneError(f"{KEY}: true, but {reason}", f"leave {KEY} out, or set it to false")
    packs = packs_rows(config, model)
    tokens, most = _tokens(config), model.family.most_pack_tokens
    if packs and most and tokens > most:
        raise VlmtuneError(
            f"{TOKENS}: {tokens} are wanted, but {model.family.name} models scale positions by the length of all "
            f"that is read, above {most}",
            f"use at most {most}",
        )
    return Decision({"pack_tokens": tokens if packs else 0})


def packs_rows(config: TrainingConfig, model: ModelFacts) -> bool:
    """Return whether rows of this model are packed."""
    wish = config.training.packing
    return wish is True or (wish == "auto" and AUTO and config.training.batch_size == 1 and not _why_not(model))


def _tokens(config: TrainingConfig) -> int:
    return config.training.pack_tokens or DEFAULT_TOKENS


def _why_not(model: ModelFacts) -> str | None:
    """Return why the model's rows cannot be packed; None where they can."""
    kind = model.config["model_type"]
    if kinds := model.layers_with_state:
        return f"{kind} models cannot be packed: layers of {', '.join(kinds)} carry what they have read to the next row"
    if model.family.not_packable:
        return f"{kind} models cannot be packed: {model.family.not_packable}"
    return None


def _excludes(config: TrainingConfig) -> list[str]:
    training = config.training
    if training.packing is True and training.batch_size > 1:
        return [
            f"{KEY}: true takes as many rows at a time as {TOKENS} hold; set training.batch_size: 1, and the rows of a "
            "step by training.gradient_accumulation_steps"
        ]
    if training.packing is True and training.gradient_accumulation_steps == 1:
        return [
            f"{KEY}: true, but a step has one row, which is nothing to put together; give "
            "training.gradient_accumulation_steps as many rows as a step is to have"
        ]
    if training.pack_tokens and training.packing is not True:
        return [f"{TOKENS}: nothing is packed without {KEY}: true"]
    return []


def _smaller_packs(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    """Half as many tokens, a quarter ...; at last no packs."""
    if config.training.packing is not True:
        return []
    tokens, steps = _tokens(config) // 2, []
    while tokens >= FEWEST_TOKENS:
        steps.append({TOKENS: tokens})
        tokens //= 2
    return [*steps, {KEY: False, TOKENS: None}]


def _packs(config: TrainingConfig, model: ModelFacts, tokens: int) -> list[Values]:
    """Packs of ever more tokens, that hold two of the longest rows at least, for configs that leave it open."""
    rows = rows_per_step(config)
    if config.training.packing != "auto" or _why_not(model) or rows == 1:
        return []
    most = model.family.most_pack_tokens or max(PACKS_TRIED)
    return [{KEY: True, TOKENS: size, **batch_of(1, rows)} for size in PACKS_TRIED if 2 * tokens <= size <= most]


PACKING = Lever(
    name="Rows in packs",
    keys=(KEY, TOKENS),
    costs="memory: a pack has the tokens of many rows at once",
    decide=_decide,
    fields=("pack_tokens",),
    savings=(
        Saving(
            GivesUp.TIME,
            "smaller packs, as many rows a step: the same result, less work for the card at once",
            _smaller_packs,
            spares=WORK,
        ),
    ),
    spending=Spending(
        _packs, lambda values: "memory is left: rows in packs; the card works on more at once", is_division=True
    ),
    # A checkpoint holds a place in one order of the rows, in which the largest pack comes first.
    on_resume=OnResume.UNTIL_CHECKPOINT,
    excludes=_excludes,
)
