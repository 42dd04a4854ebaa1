"""What each lever is worth for one plan, by simulating the plan with it: bytes saved, and the work that it adds."""

from collections.abc import Callable
from dataclasses import dataclass

from vlmtune.config.schema import TrainingConfig
from vlmtune.errors import VlmtuneError
from vlmtune.estimate.report import MemoryReport
from vlmtune.levers.base import SAVINGS, ModelFacts, spendings, words_of


@dataclass(frozen=True)
class Lever:
    """One change of a config, priced."""

    words: tuple[str, ...]
    """What to give to `--set`."""
    saved_bytes: int
    """Of the reserved peak; negative when the change costs memory."""
    work: float
    """Floating-point operations a row, as a multiple of before: the slowdown of a card that is busy computing."""
    fits: bool


def price_levers(
    config: TrainingConfig,
    before: MemoryReport,
    estimate: Callable[[tuple[str, ...]], MemoryReport],
    model: ModelFacts | None = None,
) -> list[Lever]:
    """Return every lever that applies to `config`, the largest saving first; `estimate` takes `--set` words.

    Without the facts of the model there is no lever on the number of layers, and some that turn out to save nothing.
    """
    priced = []
    for words in _every_lever(config, before, model):
        try:
            after = estimate(words)
        except VlmtuneError:  # such as rows that no longer fit into max_length: no lever for these rows
            continue
        saved = before.peak_reserved_bytes - after.peak_reserved_bytes
        priced.append(Lever(words, saved, after.flops_per_row / before.flops_per_row, after.fits))
    return sorted(priced, key=lambda lever: -lever.saved_bytes)


def _every_lever(config: TrainingConfig, before: MemoryReport, model: ModelFacts | None) -> list[tuple[str, ...]]:
    """Return the `--set` words of every change that applies: the next step of each saving, then what costs memory."""
    saving = [saving.steps(config, model, before.tokens["text"])[:1] for saving in SAVINGS]
    steps = [step for first in saving for step in first] + spendings(config, model)
    return list(dict.fromkeys(words_of(values) for values in steps))
