"""Seconds of a run on a card: what simulated batches launch, and how large the run's own batches are.

A step takes what its kernels take, unless the processor cannot launch them as fast. Between simulated batches time
follows the tokens, and that of the tower the images. No torch here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vlmtune.estimate.report import StepTime
from vlmtune.estimate.timing.rates import Rates

NOT_KERNELS = ("bus", "copy")
"""The driver's own copies."""


@dataclass(frozen=True)
class Sizes:
    """How large batches are; arrays of one number for each."""

    tokens: np.ndarray
    """Padded, or of a pack."""
    image_tokens: np.ndarray


@dataclass(frozen=True)
class RunSizes:
    """The batches of a run, or of so many of its steps as are looked at."""

    sizes: Sizes
    num_steps: int
    """Steps that these batches are of."""
    all_steps: int
    rows_per_step: int


@dataclass(frozen=True)
class Spent:
    """What batches take, in seconds; arrays of one number for each, or sums."""

    kernels: np.ndarray
    launches: np.ndarray
    """A number, not seconds."""
    copies: np.ndarray
    """Over the bus."""

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.kernels + other.kernels, self.launches + other.launches, self.copies + other.copies)


def spent(kernels: dict, rates: Rates) -> Spent:
    """Return what kernels, counted, take one after the other."""
    computing = {kernel: times for kernel, times in kernels.items() if kernel.kind not in NOT_KERNELS}
    seconds = sum(times * rates.seconds(kernel) for kernel, times in computing.items())
    launches = sum(times * rates.launches(kernel) for kernel, times in computing.items())
    bus = sum(times * rates.seconds(kernel) for kernel, times in kernels.items() if kernel.kind == "bus")
    return Spent(np.float64(seconds), np.float64(launches), np.float64(bus))


def step_time(batches: Sequence, updates: Sequence, simulated: Sizes, run: RunSizes, rates: Rates) -> StepTime:
    """Return what a step takes in the mean of a run.

    Args:
        batches: what each simulated batch launched (`kernels.Launched`).
        updates: what each simulated update launched.
        simulated: how large these batches are.
    """
    of_images = [spent(batch.images, rates) for batch in batches]
    of_tokens = [spent(batch.tokens, rates) for batch in batches]
    each = _between(simulated.image_tokens, of_images, run.sizes.image_tokens, from_nothing=True)
    each += _between(simulated.tokens, of_tokens, run.sizes.tokens, from_nothing=False)
    update = spent(updates[-1], rates)
    launch_s = rates.launch_s
    busy = np.maximum(np.maximum(each.kernels, each.launches * launch_s), each.copies)
    step_s = busy.sum() / run.num_steps + max(update.kernels, update.launches * launch_s)
    return StepTime(
        step_s=float(step_s),
        rows_per_s=float(run.rows_per_step / step_s),
        run_s=float(step_s * run.all_steps),
        num_steps=run.all_steps,
        kernels_s=float(each.kernels.sum() / run.num_steps + update.kernels),
        launches=round(float(each.launches.sum() / run.num_steps + update.launches)),
        launch_s=launch_s,
        bus_s=float(each.copies.sum() / run.num_steps),
        launch_is_measured=False,
    )


def _between(known: np.ndarray, of_known: list[Spent], wanted: np.ndarray, from_nothing: bool) -> Spent:
    """Return what batches of other sizes take: on straight lines between the known ones, and on the line beyond them."""
    sizes, first = np.unique(known, return_index=True)
    rows = [of_known[place] for place in first]
    if from_nothing and sizes[0] > 0:
        sizes, rows = np.append(0, sizes), [Spent(np.float64(0), np.float64(0), np.float64(0)), *rows]

    def column(of: Callable[[Spent], np.ndarray]) -> np.ndarray:
        values = np.array([of(row) for row in rows])
        if len(sizes) == 1:
            return np.full(len(wanted), values[0])
        return np.interp(wanted, sizes, values)

    return Spent(column(lambda row: row.kernels), column(lambda row: row.launches), column(lambda row: row.copies))
