"""Seconds of a run on a card: what simulated batches take, and how large the run's own batches are.

A step takes what its kernels take, unless the processor cannot launch them as fast or the bus carries more. Between
simulated batches time follows the tokens, and that of the tower the images. No torch here.
"""

from dataclasses import astuple, dataclass, replace
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from vlmtune.estimate.report import BatchSpent, MemoryReport, Spent, StepTime
from vlmtune.estimate.timing.rates import ASSUMED_PLAIN_LAUNCH_S, Rates
from vlmtune.hardware.cards import Card
from vlmtune.hardware.communication import bytes_per_s
from vlmtune.plan.types import RunPlan

if TYPE_CHECKING:
    from vlmtune.estimate.simulate.record import Log
    from vlmtune.estimate.timing.kernels import Kernels, Launched

COPIES = ("bus", "copy")
"""What the driver does, and no kernel."""


@dataclass(frozen=True)
class Sizes:
    """How large batches are: arrays of one number for each."""

    tokens: np.ndarray
    """Padded, or of a pack."""
    image_tokens: np.ndarray


@dataclass(frozen=True)
class RunSizes:
    """The batches of a run, or of the steps of it that are looked at."""

    sizes: Sizes
    num_steps: int
    """Steps that these batches make."""
    all_steps: int | None
    """Steps of the run; None where nobody knows."""
    of_largest: bool = False
    """Whether there are no rows yet."""


def spent(kernels: "Kernels", rates: Rates) -> Spent:
    """Return what kernels, counted, take on a card."""
    seconds = launches = plain_launches = bus_s = 0.0
    for kernel, times in kernels.items():
        if kernel.kind not in COPIES:
            seconds += times * rates.seconds(kernel)
            launches += times * rates.launches(kernel)
            plain_launches += times * rates.plain_launches(kernel)
        elif kernel.kind == "bus":
            bus_s += times * rates.seconds(kernel)
    return Spent(seconds, launches, plain_launches, bus_s)


def spent_by(log: "Log", sizes: Sizes, card: Card) -> tuple[tuple[BatchSpent, ...], Spent]:
    """Return what each simulated batch takes, and an update; nothing for a card that is not in the table.

    Args:
        sizes: of the simulated batches in their order.
    """
    if card.bandwidth_gb_s is None or not log.updates:
        return (), Spent()
    rates, known = Rates(card), zip(sizes.tokens, sizes.image_tokens, log.batches, strict=True)
    batches = [
        BatchSpent(int(tokens), int(images), spent(launched.images, rates), _with_graphs(launched, rates))
        for tokens, images, launched in known
    ]
    return tuple(batches), spent(log.updates[-1], rates)


def _with_graphs(launched: "Launched", rates: Rates) -> Spent:
    """Return what all but the images' kernels take; the processor launches graphs, and not what they have recorded."""
    own, recorded = spent(launched.tokens, rates), spent(launched.recorded, rates)
    return replace(own, kernels_s=own.kernels_s + recorded.kernels_s)


def as_graphs(batches: tuple[BatchSpent, ...]) -> tuple[BatchSpent, ...]:
    """Return what batches take at least where their layers are graphs: nothing is launched but the images' kernels."""
    tokens = [replace(batch.of_tokens, launches=0, plain_launches=0) for batch in batches]
    return tuple(replace(batch, of_tokens=of_tokens) for batch, of_tokens in zip(batches, tokens, strict=True))


def of_largest(report: MemoryReport, plan: RunPlan) -> RunSizes:
    """Return the sizes of a step of nothing but the largest rows."""
    row, images = report.tokens["total"], report.tokens["image"]
    rows = max(1, plan.pack_tokens // row) if plan.pack_tokens else plan.batch_size
    passes = ceil(plan.rows_per_step / rows / plan.num_gpus)
    sizes = Sizes(np.full(passes, rows * row), np.full(passes, rows * images))
    return RunSizes(sizes, 1, plan.max_steps, of_largest=True)


def step_time(report: MemoryReport, run: RunSizes, rows_per_step: int, card: Card) -> StepTime:
    """Return what a step takes in the mean of a run."""
    batches, update = report.batches, report.update
    of_images = _between(
        [(0, Spent()), *((batch.image_tokens, batch.of_images) for batch in batches)], run.sizes.image_tokens
    )
    of_tokens = _between([(batch.tokens, batch.of_tokens) for batch in batches], run.sizes.tokens)
    kernels_s, launches, plain_launches, bus_s = of_images + of_tokens
    plain_s = ASSUMED_PLAIN_LAUNCH_S if card.plain_launch_s is None else card.plain_launch_s
    busy_s = np.maximum(np.maximum(kernels_s, plain_launches * plain_s), bus_s)
    summed_s, gathered_s = (
        num_bytes / bytes_per_s(card) for num_bytes in (report.summed_bytes_per_step, report.gathered_bytes_per_step)
    )
    step_s = max(float(busy_s.sum()) / run.num_steps, gathered_s) + summed_s
    step_s += max(update.kernels_s, update.plain_launches * plain_s)
    num_launches = float(launches.sum()) / run.num_steps + update.launches
    num_plain = float(plain_launches.sum()) / run.num_steps + update.plain_launches
    return StepTime(
        step_s=step_s,
        rows_per_s=rows_per_step / step_s,
        run_s=None if run.all_steps is None else step_s * run.all_steps,
        num_steps=run.all_steps,
        kernels_s=float(kernels_s.sum()) / run.num_steps + update.kernels_s,
        launches=round(num_launches),
        plain_launches=round(num_plain),
        launch_s=plain_s * num_plain / max(1, num_launches),
        launch_is_measured=card.plain_launch_s is not None,
        bus_s=float(bus_s.sum()) / run.num_steps,
        of_largest=run.of_largest,
        exchanged_s=summed_s + gathered_s,
    )


def _between(known: list[tuple[int, Spent]], wanted: np.ndarray) -> np.ndarray:
    """Return what batches of other sizes take, on lines between the known ones: [of `Spent`; batch]."""
    by_size = dict(sorted(known, key=lambda one: one[0]))
    columns = np.array([astuple(of) for of in by_size.values()]).T
    return np.array([np.interp(wanted, list(by_size), column) for column in columns])
