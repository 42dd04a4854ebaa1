"""How long a run is: rows per optimizer step and epochs where the config leaves them open, by the number of rows."""

from math import ceil, log2

from vlmtune.config.schema import TrainingConfig, TrainingSection
from vlmtune.config.values import Values
from vlmtune.levers.batch import ACCUMULATION, MOST_ROWS
from vlmtune.plan.types import RunPlan

EPOCHS = "training.num_epochs"
ENOUGH_STEPS = 100
"""A run of fewer is mostly warm-up and decay of the learning rate."""
FEW_STEPS = 30
USUAL_EPOCHS = 3
"""With so many passes the rows of a step are divided, before epochs are counted."""
FEWEST_ROWS = 4
"""Of a step: with fewer, steps follow single rows."""


def open_values(config: TrainingConfig, num_rows: int | None) -> Values:
    """Return what the config leaves open: gradient accumulation and epochs, chosen by the number of rows.

    Rows per step: 4 to 32, a power of two, as many as leave 100 steps in three epochs (or in those that are given).
    Epochs: as many as make 100 steps, at least one. With None rows, 32 rows per step and one epoch.
    """
    training, values = config.training, {}
    accumulation = training.gradient_accumulation_steps
    if accumulation is None:
        rows = _rows_per_step(num_rows, training.num_epochs or USUAL_EPOCHS)
        accumulation = values[ACCUMULATION] = max(1, rows // training.batch_size)
    if training.num_epochs is None:
        per_epoch = steps_per_epoch(num_rows, training.batch_size, accumulation) if num_rows else ENOUGH_STEPS
        values[EPOCHS] = float(ceil(ENOUGH_STEPS / per_epoch))
    return values


def begun_values(config: TrainingConfig, begun: RunPlan) -> Values:
    """Return what the config leaves open as the run that is to be continued has it."""
    training, values = config.training, {}
    if training.gradient_accumulation_steps is None:
        values[ACCUMULATION] = max(1, begun.rows_per_step // training.batch_size)
    if training.num_epochs is None:
        values[EPOCHS] = begun.num_epochs
    return values


def steps_per_epoch(num_rows: int, batch_size: int, accumulation: int) -> int:
    """Return the optimizer steps of one pass over the rows; the last may have fewer of them."""
    return ceil(ceil(num_rows / batch_size) / accumulation)


def num_steps(run: RunPlan | TrainingSection, num_rows: int) -> int:
    """Return the optimizer steps of a run that leaves nothing open, as transformers' Trainer counts them."""
    per_epoch = steps_per_epoch(num_rows, run.batch_size, run.gradient_accumulation_steps)
    return run.max_steps or ceil(run.num_epochs * per_epoch)


def evaluations_from(step: int, total_steps: int, eval_steps: int | None) -> int:
    """Return the evaluations at `step` and later: at each multiple of `eval_steps` and at the last step."""
    if step > total_steps:
        return 0
    if eval_steps is None:
        return 1
    return total_steps // eval_steps - (step - 1) // eval_steps + (total_steps % eval_steps != 0)


def told_of_length(run: RunPlan | TrainingSection, num_rows: int, chosen: Values) -> tuple[str, ...]:
    """Return what people are told of a run's length, a warning behind it where it is short."""
    warning = warning_of_few(run, num_rows)
    return (length_told(run, num_rows, chosen), *([warning] if warning else []))


def length_told(run: RunPlan | TrainingSection, num_rows: int, chosen: Values) -> str:
    """Return how many steps there will be and of what, and what of it was chosen, for people."""
    steps, rows = num_steps(run, num_rows), run.batch_size * run.gradient_accumulation_steps
    passes = f"{run.num_epochs:g} epoch{'s' * (run.num_epochs != 1)} over " if run.max_steps is None else ""
    told = f"{steps:,} step{'s' * (steps != 1)} of {rows} row{'s' * (rows != 1)}: "
    told += f"{passes}{num_rows:,} row{'s' * (num_rows != 1)}"
    counts = [f"{key}={value:g}" for key, value in chosen.items() if run.max_steps is None or key != EPOCHS]
    return told + (f" (chosen: {', '.join(counts)})" if counts else "")


def warning_of_few(run: RunPlan | TrainingSection, num_rows: int) -> str | None:
    """Return a warning for a run that is too short to learn much."""
    steps = num_steps(run, num_rows)
    if steps >= FEW_STEPS:
        return None
    way_out = "training.max_steps" if run.max_steps else f"a larger {EPOCHS}, or a smaller {ACCUMULATION},"
    many = f"{steps} steps teach" if steps != 1 else "1 step teaches"
    return f"warning: {many} little, {ENOUGH_STEPS} are usual: {way_out} changes that, or leave it out"


def _rows_per_step(num_rows: int | None, num_epochs: float) -> int:
    if num_rows is None:
        return MOST_ROWS
    rows = max(1.0, num_rows * num_epochs / ENOUGH_STEPS)
    return min(MOST_ROWS, max(FEWEST_ROWS, 2 ** int(log2(rows))))
