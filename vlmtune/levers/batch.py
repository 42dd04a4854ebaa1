"""Batch: rows at a time; as many a step, whatever their division."""

from typing import TYPE_CHECKING

from vlmtune.config.schema import TrainingConfig
from vlmtune.config.values import Values
from vlmtune.errors import VlmtuneError
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.base import WORK, Choice, Decision, GivesUp, Lever, OnResume, Saving, Spending
from vlmtune.levers.gpus.number import KEY as GPUS
from vlmtune.levers.gpus.number import num_gpus

if TYPE_CHECKING:
    from vlmtune.plan.types import Device, RunPlan

SIZE, ACCUMULATION = "training.batch_size", "training.gradient_accumulation_steps"
MOST_ROWS = 32
"""Of a step where the config leaves them open: of more, adapters have seen no profit."""
ENOUGH_TOKENS = 8192
"""Of one forward pass: with more, neither unpacking 4-bit weights nor launching kernels is felt on most cards."""


def _decide(config: TrainingConfig, model: ModelFacts, device: "Device") -> Decision:
    size, accumulation, gpus = config.training.batch_size, _accumulation(config), num_gpus(config, device)
    if gpus <= accumulation:
        return Decision({"batch_size": size, "gradient_accumulation_steps": accumulation})
    rows = size * accumulation
    if gpus > rows:
        raise VlmtuneError(
            f"{GPUS}: {gpus} GPUs have nothing to share: an optimizer step has {rows} row{'s' * (rows != 1)}",
            f"fewer GPUs, or a larger {ACCUMULATION}, which changes the result",
        )
    fitting = max(fewer for fewer in range(1, size + 1) if rows % fewer == 0 and rows // fewer >= gpus)
    reason = f"{gpus} GPUs share the {rows} rows of a step"
    choices = (Choice(SIZE, str(fitting), reason), Choice(ACCUMULATION, str(rows // fitting), reason))
    return Decision({"batch_size": fitting, "gradient_accumulation_steps": rows // fitting}, choices)


def rows_per_step(config: TrainingConfig) -> int:
    """Return the rows of one optimizer step."""
    return config.training.batch_size * _accumulation(config)


def _accumulation(config: TrainingConfig) -> int:
    """Return what the config says; where it leaves that open, what it is with many rows (plan/length.py)."""
    training = config.training
    return training.gradient_accumulation_steps or max(1, MOST_ROWS // training.batch_size)


def batch_of(batch_size: int, rows: int) -> Values:
    """Return the values that take `rows` an optimizer step, `batch_size` at a time."""
    return {SIZE: batch_size, ACCUMULATION: rows // batch_size}


def _fewer_rows(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    rows, batch_size = rows_per_step(config), config.training.batch_size
    steps = []
    while batch_size > 1:
        batch_size = batch_size // 2 if batch_size % 2 == 0 else 1
        steps.append(batch_of(batch_size, rows))
    return steps


def _more_rows(config: TrainingConfig, model: ModelFacts, tokens: int) -> list[Values]:
    """Twice, four times ... as many rows, as long as they divide those of a step."""
    rows, batch_size = rows_per_step(config), config.training.batch_size
    levels = []
    while _doubles(config, batch_size) and batch_size * tokens < ENOUGH_TOKENS:
        batch_size *= 2
        levels.append(batch_of(batch_size, rows))
    return levels


def _more(config: TrainingConfig, model: ModelFacts | None) -> list[Values]:
    batch_size = config.training.batch_size
    return [batch_of(2 * batch_size, rows_per_step(config))] if _doubles(config, batch_size) else []


def _doubles(config: TrainingConfig, batch_size: int) -> bool:
    """Return whether twice as many rows at a time divide those of a step; of packs there are no batches."""
    return config.training.packing is not True and rows_per_step(config) % (2 * batch_size) == 0


def _same_rows(begun: "RunPlan", now: "RunPlan") -> bool:
    """How the rows of a step are divided decides nothing, as long as they are the same rows."""
    return begun.rows_per_step == now.rows_per_step


BATCH = Lever(
    name="Rows at a time",
    keys=(SIZE, ACCUMULATION),
    costs="time: each pass has less work for the card at once",
    decide=_decide,
    fields=("batch_size", "gradient_accumulation_steps"),
    savings=(
        Saving(
            GivesUp.TIME,
            "fewer rows at a time, as many a step: the same result, less work for the card at once",
            _fewer_rows,
            spares=WORK,
        ),
    ),
    spending=Spending(
        _more_rows,
        lambda values: "memory is left: more rows at a time, as many a step; the card works on more at once",
        is_division=True,
    ),
    more=_more,
    on_resume=OnResume.FREE,
    same_result=_same_rows,
)
