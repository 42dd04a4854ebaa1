"""A run's seconds from simulated batches and the sizes of its own."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from vlmtune.estimate.report import BatchSpent, MemoryReport, PeakAt, Spent, StepTime
from vlmtune.estimate.timing.kernels import Kernel, Launched
from vlmtune.estimate.timing.predict import RunSizes, Sizes, of_largest, spent_by, step_time
from vlmtune.hardware.cards import find_card

NOTHING = Spent()
CARD = find_card("rtx-4060")
SMALL = BatchSpent(100, 50, of_images=Spent(0.05), of_tokens=Spent(0.1, 1000))
LARGE = BatchSpent(300, 50, of_images=Spent(0.05), of_tokens=Spent(0.5, 1000))
PLAIN = {"model": "m", "preset": None, "gpu": "rtx-4060", "fits": True, "worst_row": "", "fast": True, "seconds": 0.0}
SIZES = dict.fromkeys(("peak_reserved_bytes", "peak_allocated_bytes", "device_total_bytes", "budget_bytes"), 0)


def report(*batches: BatchSpent, update: Spent = NOTHING) -> MemoryReport:
    empty = {
        "breakdown": (),
        "parts": {},
        "peak_at": PeakAt("", "", ""),
        "phases": (),
        "tokens": {"total": 100, "image": 50},
    }
    return MemoryReport(**PLAIN, **SIZES, **empty, flops_per_row=1, versions={}, batches=batches, update=update)


def run_of(tokens: list[int], images: list[int], num_steps: int = 1, all_steps: int = 10) -> RunSizes:
    return RunSizes(Sizes(np.array(tokens), np.array(images)), num_steps, all_steps)


def test_between_batches_time_follows_tokens_and_images():
    time = step_time(report(SMALL, LARGE), run_of([200, 300], [25, 0]), 2, CARD)
    assert time.step_s == pytest.approx(0.3 + 0.025 + 0.5)
    assert (time.rows_per_s, time.run_s, time.launches) == (
        pytest.approx(2 / time.step_s),
        pytest.approx(10 * time.step_s),
        2000,
    )


def test_a_step_is_a_share_of_those_looked_at_and_an_update():
    time = step_time(report(SMALL, update=Spent(0.2, 7)), run_of([100] * 4, [50] * 4, num_steps=2), 2, CARD)
    assert time.step_s == pytest.approx(2 * 0.15 + 0.2)
    assert time.launches == 2007


@pytest.mark.parametrize(
    ("spent", "expected_s"),
    [(Spent(0.3, 500, 1000, 0.1), 0.3), (Spent(0.3, 20_000, 40_000, 0.1), 0.4), (Spent(0.3, 500, 1000, 0.7), 0.7)],
)
def test_the_longest_of_kernels_launches_and_bus_decides(spent, expected_s):
    card = replace(CARD, plain_launch_s=1e-5)
    time = step_time(report(BatchSpent(100, 0, Spent(), spent)), run_of([100], [0]), 1, card)
    assert time.step_s == pytest.approx(expected_s)
    assert time.launch_is_measured and "measured" in time.limits
    assert time.launch_s == pytest.approx(2e-5)  # in the mean: what is called through Python counts more


def test_without_rows_all_are_the_largest():
    run = of_largest(report(SMALL), _Plan())
    assert run.sizes.tokens.tolist() == [200, 200, 200] and run.all_steps is None
    assert run.sizes.image_tokens.tolist() == [100, 100, 100]
    packed = _Plan()
    packed.pack_tokens = 350  # holds three of them
    assert of_largest(report(SMALL), packed).sizes.tokens.tolist() == [300, 300]
    time = step_time(report(SMALL), run, 6, CARD)
    assert time.run_s is None and time.pace.endswith("if all rows are the largest")


class _Plan:
    rows_per_step, batch_size, pack_tokens, max_steps, num_gpus = 6, 2, 0, None, 1


@pytest.mark.parametrize(
    ("value", "said"), [(0.3149, "0.315"), (13.34, "13.3"), (999.4, "999"), (999.6, "1,000"), (2231.4, "2,231")]
)
def test_a_rate_is_said_without_powers_of_ten(value, said):
    pace = StepTime.pace.fget
    made = SimpleNamespace(run_s=None, of_largest=False, step_s=0.1, rows_per_s=value)
    assert pace(made) == f"0.1 s a step, {said} rows a second"


def test_train_says_the_pace_in_its_line():
    from vlmtune.workflow.launch import Expected

    timed = report(SMALL)
    timed = replace(timed, time=step_time(timed, run_of([100], [50], all_steps=90_000), 2, CARD))
    line = Expected(timed, SimpleNamespace(target=SimpleNamespace(budget_bytes=0))).line
    assert line.endswith("; predicted 0.15 s a step, 13.3 rows a second, 3.8 h for 90,000 steps")
    assert Expected(report(), SimpleNamespace(target=SimpleNamespace(budget_bytes=0))).line.count("predicted") == 0


def test_the_processor_launches_a_graph_and_not_what_it_has_recorded():
    card = find_card("rtx-4090")
    kernel = Kernel("pass", 10**8, 10**7)
    plain, graphed = (
        Launched(Counter(), Counter({kernel: 50}), Counter()),
        Launched(Counter(), Counter({Kernel("graph", 0): 2}), Counter({kernel: 50})),
    )
    log = SimpleNamespace(batches=[plain, graphed], updates=[Counter()])
    sizes = Sizes(np.array([100, 100]), np.array([0, 0]))
    (one, other), _ = spent_by(log, sizes, card)
    assert one.of_tokens.kernels_s == pytest.approx(other.of_tokens.kernels_s) and one.of_tokens.kernels_s > 0
    assert (one.of_tokens.launches, other.of_tokens.launches) == (50, 2)
    assert (one.of_tokens.plain_launches, other.of_tokens.plain_launches) == (50, 2)
