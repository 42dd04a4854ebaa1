"""The time of steps, and what the card did in some of them.

That is taken from the profiler's own records: of half a million of them its `events()` makes objects, which takes
minutes.
"""

import gc
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from vlmtune.compat.torch import CLEAR_CUBLAS_WORKSPACES

NOT_KERNELS = ("Memcpy", "Memset")
TOP_KERNELS = 100
QUEUE_CYCLES = 20_000_000
"""What the card waits for before it begins, so that launching is not what is timed."""


class Clock(TrainerCallback):
    """The time of each step from its first one on, 0; what the card does in some, and where the host waits in another.

    `seconds`: a step ends where the next begins, so that logging, and fetching the rows of the next one, belong to it.
    `computing_s`: of the same steps without these, which is what is predicted: rows of a run of a few steps are late.
    """

    def __init__(self, profiled: Collection[int] = (), watched: int | None = None, warm_up: int = 2) -> None:
        self.profiled, self.watched, self.warm_up = profiled, watched, warm_up
        self.seconds: list[float] = []
        self.computing_s: list[float] = []
        self.spans: list[Span] = []
        self.waits: Counter = Counter()

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step:
            self._end(state.global_step - 1)
        if self.profiled and state.global_step == min(self.profiled):
            self.profiler = profile(activities=[ProfilerActivity.CUDA])
            self.profiler.start()
        if state.global_step == self.watched:
            self.catching = warnings.catch_warnings(record=True)
            self.caught = self.catching.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        self.started = _now()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.computing_s.append(_now() - self.started)
        if state.global_step == state.max_steps:  # what comes then, a checkpoint perhaps, is no step's
            self._end(state.global_step - 1)

    def _end(self, step: int) -> None:
        self.seconds.append(_now() - self.started)
        if self.profiled and step == max(self.profiled):
            self.profiler.stop()
            self.spans = kernels_of(on_card(self.profiler))
        if step == self.watched:
            torch.cuda.set_sync_debug_mode("default")
            self.catching.__exit__(None, None, None)
            self.waits.update(f"{Path(one.filename).name}:{one.lineno}" for one in self.caught)

    def timed(self, seconds: Sequence[float] | None = None) -> list[float]:
        """Return the seconds of the steps that are neither for warming up nor slowed by being looked at."""
        looked_at = {*self.profiled, self.watched}
        every = enumerate(self.seconds if seconds is None else seconds)
        return [s for step, s in every if step >= self.warm_up and step not in looked_at]

    def figures(self, rows_per_step: int) -> dict:
        """Return what a row takes: medians and quartiles of the timed steps, kernels of the profiled ones."""
        timed, profiled_rows = self.timed(), rows_per_step * len(self.profiled)
        lower, step_s, upper = statistics.quantiles(timed, n=4, method="inclusive")
        return {
            "step_s": step_s,
            "step_s_quartiles": [lower, upper],
            "timed_steps": len(timed),
            "rows_per_s": rows_per_step / step_s,
            "rows_per_s_quartiles": [rows_per_step / upper, rows_per_step / lower],
            "kernel_ms_per_row": seconds_of(self.spans) / profiled_rows * 1e3,
            "launches_per_row": len(self.spans) / profiled_rows,
        }


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Span(NamedTuple):
    """Something that ran on the card."""

    start_ns: int
    end_ns: int
    name: str


def on_card(profiler: profile) -> list[Span]:
    """Return all that ran while the profiler did, in its order."""
    events = profiler.profiler.kineto_results.events()
    return sorted(Span(e.start_ns(), e.end_ns(), e.name()) for e in events if e.device_type().name == "CUDA")


def kernels_of(spans: Iterable[Span]) -> list[Span]:
    """Return those that compute: neither copies nor fills."""
    return [span for span in spans if not span.name.startswith(NOT_KERNELS)]


def seconds_of(spans: Iterable[Span]) -> float:
    """Return how long they ran in all, side by side counted twice."""
    return sum(span.end_ns - span.start_ns for span in spans) / 1e9


def most_of(kernels: Iterable[Span], steps: int = 1) -> list[tuple[str, float, float]]:
    """Return the kernels that took most in all: name, milliseconds and launches of one of so many steps."""
    by_name: dict[str, list[Span]] = {}
    for span in kernels:
        by_name.setdefault(span.name[:100], []).append(span)
    found = [(name, round(seconds_of(some) * 1e3 / steps, 2), len(some) / steps) for name, some in by_name.items()]
    return sorted(found, key=lambda one: -one[1])[:TOP_KERNELS]


def seconds_of_both(some: list[Span], others: list[Span]) -> float:
    """Return how long one of `some` and one of `others` ran at once; both are in their order."""
    shared_ns, place, busy = 0, 0, _joined(others)
    for span in _joined(some):
        while place < len(busy) and busy[place].end_ns <= span.start_ns:
            place += 1
        for other in busy[place:]:
            if other.start_ns >= span.end_ns:
                break
            shared_ns += min(span.end_ns, other.end_ns) - max(span.start_ns, other.start_ns)
    return shared_ns / 1e9


def _joined(spans: list[Span]) -> list[Span]:
    """Return when anything ran: spans that do not overlap."""
    joined: list[Span] = []
    for span in spans:
        if joined and span.start_ns <= joined[-1].end_ns:
            joined[-1] = joined[-1]._replace(end_ns=max(span.end_ns, joined[-1].end_ns))
        else:
            joined.append(span)
    return joined


def each_in_its_own(function: Callable, tasks: Sequence[tuple]) -> Iterator:
    """Call with each of the arguments in a process of its own, in turn.

    Behind a run that was profiled launches take up to a fifth longer for as long as its process lives (H200, torch
    2.11: 12.2 µs before, 14.6 after).
    """
    for task in tasks:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            yield process.submit(function, *task).result()


def free_card() -> None:
    """Give back all that a run has taken."""
    gc.collect()
    CLEAR_CUBLAS_WORKSPACES()
    torch.cuda.empty_cache()


def milliseconds(run: Callable[[], object], times: int = 20) -> float:
    """Return what one run takes on the card, the mean of some."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(QUEUE_CYCLES)
    begin.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / times
