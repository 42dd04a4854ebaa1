"""What is read of a profile."""

import os
from types import SimpleNamespace

import pytest
from gpu import profiled
from gpu.profiled import Clock, Span, each_in_its_own, kernels_of, most_of, seconds_of, seconds_of_both

SPANS = [Span(0, 10, "gemm"), Span(5, 7, "Memcpy HtoD"), Span(8, 22, "norm"), Span(20, 30, "Memcpy HtoD")]


def test_copies_and_fills_are_no_kernels():
    kernels = kernels_of([*SPANS, Span(40, 41, "Memset (Device)")])
    assert [span.name for span in kernels] == ["gemm", "norm"]
    assert seconds_of(kernels) == 24e-9


def test_what_runs_at_once_is_counted_once():
    copies = [span for span in SPANS if span.name.startswith("Memcpy")]
    assert seconds_of_both(copies, kernels_of(SPANS)) == 4e-9  # 5 to 7, and 20 to 22
    assert seconds_of_both(kernels_of(SPANS), copies) == 4e-9
    assert seconds_of_both(copies, []) == 0


def test_kernels_are_told_by_name_the_longest_in_all_first():
    spans = [Span(0, 3_000_000, "norm"), Span(3_000_000, 5_000_000, "gemm"), Span(5_000_000, 7_000_000, "gemm")]
    assert most_of(spans) == [("gemm", 4.0, 2), ("norm", 3.0, 1)]
    assert most_of(spans, steps=2) == [("gemm", 2.0, 1), ("norm", 1.5, 0.5)]


class FakeProfile:
    def __init__(self, activities) -> None:
        self.is_on = False

    def start(self) -> None:
        self.is_on = True

    def stop(self) -> None:
        assert self.is_on


def clocked(monkeypatch, seconds: list[float], clock: Clock) -> Clock:
    """Let steps take so long, half of it for rows and logs but in the last one, which a checkpoint follows."""
    now, beginnings = [0.0], [sum(seconds[:step]) for step in range(len(seconds) + 1)]
    monkeypatch.setattr(profiled, "_now", lambda: now[0])
    monkeypatch.setattr(profiled, "profile", FakeProfile)
    monkeypatch.setattr(profiled, "on_card", lambda profiler: SPANS)
    for step, (begin, end) in enumerate(zip(beginnings, beginnings[1:], strict=False)):
        state = SimpleNamespace(global_step=step, max_steps=len(seconds))
        now[0] = begin
        clock.on_step_begin(None, state, None)
        now[0], state.global_step = (end if step + 1 == len(seconds) else (begin + end) / 2), step + 1
        clock.on_step_end(None, state, None)
    return clock


def test_steps_that_warm_up_or_are_looked_at_are_not_timed(monkeypatch):
    clock = clocked(monkeypatch, [9.0, 7.0, 1.0, 5.0, 2.0, 3.0], Clock(profiled=(3,), warm_up=2))
    assert clock.seconds == [9.0, 7.0, 1.0, 5.0, 2.0, 3.0]
    assert clock.timed() == [1.0, 2.0, 3.0]
    assert clock.timed(clock.computing_s) == [0.5, 1.0, 3.0]
    found = clock.figures(rows_per_step=4)
    assert (found["step_s"], found["step_s_quartiles"], found["timed_steps"]) == (2.0, [1.5, 2.5], 3)
    assert (found["rows_per_s"], found["launches_per_row"]) == (2.0, 0.5)
    assert found["kernel_ms_per_row"] == pytest.approx(24e-9 / 4 * 1e3)


def test_several_steps_are_profiled_as_one(monkeypatch):
    clock = clocked(monkeypatch, [9.0, 1.0, 1.0, 1.0, 1.0], Clock(profiled=range(3, 5), warm_up=1))
    assert clock.figures(rows_per_step=1)["launches_per_row"] == 1  # 2 kernels of 2 rows


def test_each_run_has_a_process_of_its_own_and_what_fails_there_fails_here():
    processes = list(each_in_its_own(os.getpid, [(), ()]))
    assert len({os.getpid(), *processes}) == 3
    with pytest.raises(ZeroDivisionError):
        list(each_in_its_own(divmod, [(1, 0)]))
