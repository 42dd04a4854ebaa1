"""What each lever is worth for one plan, by simulating the plan with it: bytes saved, and the work that it adds."""

from collections.abc import Callable
from dataclasses import dataclass

from vlmtune import levers
from vlmtune.config.schema import TrainingConfig
from vlmtune.config.values import Values, words_of
from vlmtune.errors import VlmtuneError
from vlmtune.estimate.report import MemoryReport
from vlmtune.families.facts import ModelFacts


@dataclass(frozen=True)
class Priced:
    """One change of a config, with what it is worth."""

    words: tuple[str, ...]
    """What to give to `--set`."""
    saved_bytes: int
    """Of the reserved peak; negative when the change costs memory."""
    work: float
    """Floating-point operations a row, as a multiple of before."""
    time: float | None
    """What a row is predicted to take, as a multiple of before; None for a card whose rates nobody knows."""
    fits: bool
    streamed_bytes_per_step: int = 0
    """What comes from main memory to the card in one optimizer step, of streamed layers."""


def priced(values: Values, before: MemoryReport, after: MemoryReport) -> Priced:
    """Return what a change is worth by the estimates without and with it."""
    saved_bytes = before.peak_reserved_bytes - after.peak_reserved_bytes
    work = after.flops_per_row / before.flops_per_row
    time = before.time.rows_per_s / after.time.rows_per_s if before.time and after.time else None
    return Priced(words_of(values), saved_bytes, work, time, after.fits, after.streamed_bytes_per_step)


def price_levers(
    config: TrainingConfig,
    before: MemoryReport,
    estimate: Callable[[Values], MemoryReport],
    model: ModelFacts | None = None,
) -> list[Priced]:
    """Return every change by a lever that applies to `config`, the largest saving first.

    Without the facts of the model there is none on the number of layers, and some that turn out to save nothing.

    Args:
        estimate: values on top of the config → its estimate.
    """
    found = []
    for values in _every_change(config, before, model):
        try:
            found.append(priced(values, before, estimate(values)))
        except VlmtuneError:  # such as rows that no longer fit into max_length: no lever for these rows
            continue
    return sorted(found, key=lambda one: -one.saved_bytes)


def _every_change(config: TrainingConfig, before: MemoryReport, model: ModelFacts | None) -> list[Values]:
    """Return the values of every change that applies: the next step of each saving, then what costs memory."""
    text_tokens = before.tokens["text"]
    shown = [saving.priced(saving.steps(config, model, text_tokens)) for _, saving in levers.savings()]
    steps = [step for steps in shown for step in steps] + levers.more_memory(config, model)
    return list({words_of(values): values for values in steps}.values())
