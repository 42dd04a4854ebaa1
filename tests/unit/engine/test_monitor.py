import dataclasses
import io
import math
import weakref

import pytest
from rich.console import Console

from vlmtune.engine.monitor import LiveView
from vlmtune.engine.panel import Course, clock, plain_line, render, sparkline
from vlmtune.runs.records import GpuAtStep, StepRecord
from vlmtune.units import GIB

RECORD = StepRecord(
    step=12, total_steps=90, epoch=0.27, loss=0.4121, learning_rate=1.9e-4, grad_norm=0.82, tokens_per_s=1234.0,
    samples_per_s=3.42, data_wait_share=0.02, elapsed_s=28.0, eta_s=192.0, gpu_memory_bytes=int(5.9 * GIB),
    gpu_peak_bytes=int(6.2 * GIB), gpu_limit_bytes=8 * GIB, gpu_temperature_c=71,
)  # fmt: skip
ON_CPU = dataclasses.replace(
    RECORD, gpu_memory_bytes=None, gpu_peak_bytes=None, gpu_limit_bytes=None, gpu_temperature_c=None
)


def terminal(width=80):
    return Console(file=io.StringIO(), width=width, height=24, force_terminal=True, color_system=None, _environ={})


def panel(*records, width=80, **options):
    console = terminal(width)
    console.print(render(records, **options))
    return console.file.getvalue()


def test_plain_line_has_everything():
    assert plain_line(RECORD) == (
        "step 12/90  loss 0.412  lr 1.9e-04  1.2k tok/s  3.4 rows/s  gpu 5.9/6.2/8.0 GiB 71C  wait 2%  eta 3:12"
    )


def test_of_several_gpus_each_peak_is_shown_and_the_slowest():
    gpus = (GpuAtStep(2 * GIB, 0.3), GpuAtStep(3 * GIB, 0.02), GpuAtStep(2 * GIB, 0.25))
    several = dataclasses.replace(RECORD, gpus=gpus)
    said = "peaks 2.0 3.0 2.0 GiB, others wait up to 30% for process 1"
    assert f"  wait 2%  {said}  eta" in plain_line(several) and said in panel(several)
    on_cpu = dataclasses.replace(ON_CPU, gpus=tuple(dataclasses.replace(gpu, peak_bytes=None) for gpu in gpus))
    assert "wait 2%  others wait up to 30% for process 1" in plain_line(on_cpu)


def test_plain_line_on_a_cpu_with_an_evaluation():
    record = dataclasses.replace(ON_CPU, eval_loss=0.5, loss=math.nan)
    assert plain_line(record) == (
        "step 12/90  loss nan  evaluation loss 0.500  lr 1.9e-04  1.2k tok/s  3.4 rows/s  cpu  wait 2%  eta 3:12"
    )


@pytest.mark.parametrize(("slowdown_c", "is_told"), ((71, True), (72, False), (None, False)))
def test_plain_line_tells_when_the_card_slows_down(slowdown_c, is_told):
    assert ("71C (slows down from 71C)" in plain_line(RECORD, slowdown_c=slowdown_c)) is is_told


@pytest.mark.parametrize("options", ({}, {"force_terminal": True, "_environ": {"TERM": "dumb"}}))
def test_without_a_terminal_the_view_is_lines_without_control_characters(options):
    console = Console(file=io.StringIO(), width=40, height=24, color_system=None, **options)
    with LiveView("digits [bold]8gb[/bold]", console) as view:
        view.note("row 17 goes first")
        view.update(RECORD)
        view.warn("the loss scale is small")
        view.update(dataclasses.replace(RECORD, step=13))
    lines = console.file.getvalue().splitlines()
    assert lines[:2] == ["digits [bold]8gb[/bold]", "row 17 goes first"]
    assert lines[2] == plain_line(RECORD)
    assert lines[3] == "warning: the loss scale is small"
    assert lines[4].startswith("step 13/90") and len(lines) == 5
    assert all(character.isprintable() for line in lines for character in line)


def test_panel_at_80_columns():
    records = [dataclasses.replace(RECORD, step=step, loss=3.0 / step) for step in range(1, 13)]
    assert [line.rstrip() for line in panel(*records, title="digits").splitlines()] == [
        "╭─  digits  ────────────────────────────────────────────────────────────────╮",
        "│ step    ━━━━━━                                           12/90  3:12 left │",
        "│ loss    0.2500  █▄▃▂▂▂▁▁▁▁▁▁                                              │",
        "│ rate    1.9e-04  gradient 0.82  epoch 0.27                                │",
        "│ speed   1.2k tokens/s  3.4 rows/s  0:28 so far                            │",
        "│ memory  ███████████████████████████▒▒░░░░░░░░  5.9 now  6.2 peak  8.0 GiB │",
        "│ heat    71 °C                                                             │",
        "│ wait    2% of the time for data                                           │",
        "╰───────────────────────────────────────────────────────────────────────────╯",
    ]


@pytest.mark.parametrize("width", (60, 80, 200))
def test_no_line_of_the_panel_is_longer_than_the_terminal(width):
    worst = dataclasses.replace(RECORD, data_wait_share=0.99, eta_s=360_000.0, step=99_999, total_steps=100_000)
    text = panel(*[worst] * 100, width=width, title="a-name " * 30, slowdown_c=70)
    assert max(len(line) for line in text.splitlines()) <= min(width - 3, 90), "room for the ^C that a terminal echoes"
    for wanted in ("99999/100000", "100:00:00 left", "6.2 peak", "slows down from 70"):
        assert wanted in text


def test_panel_shows_the_estimate_beside_the_peak():
    assert "5.9 now  6.2 peak (estimate 6.0)  8.0 GiB" in panel(dataclasses.replace(RECORD, gpu_estimate_bytes=6 * GIB))


def test_a_narrow_panel_shows_the_newest_losses():
    records = [RECORD] * 59 + [dataclasses.replace(RECORD, loss=9.0)]
    assert "▁▁█ │" in panel(*records, width=60)


def test_panel_warns_about_heat_and_waiting():
    calm = panel(RECORD, slowdown_c=72)
    assert "slows down" not in calm and "num_workers" not in calm
    text = panel(dataclasses.replace(RECORD, data_wait_share=0.31), slowdown_c=71)
    assert "71 °C: the card slows down from 71 °C, cool it" in text
    assert "31% of the time for data: raise hardware.num_workers" in text


def test_panel_on_a_cpu_says_cpu_and_has_no_memory():
    text = panel(ON_CPU)
    assert "device  CPU" in text
    assert "memory" not in text and "heat" not in text


def test_panel_keeps_showing_the_last_evaluation():
    evaluated = dataclasses.replace(RECORD, eval_loss=0.75)
    assert "0.4121  evaluation 0.7500" in panel(evaluated, RECORD)


def test_panel_before_the_first_step():
    assert "the first step is running" in panel()


def test_work_before_the_first_step_is_shown_on_a_terminal_and_ends(monkeypatch):
    monkeypatch.setattr("vlmtune.engine.monitor.REDRAWN_AFTER_S", -1.0)
    console = terminal()
    with LiveView("digits", console) as view:
        with view.doing("measuring rows", 2000) as advance:
            advance(500)
            advance(1000)
        view.update(RECORD)
    text = console.file.getvalue()
    assert "measuring rows: 1,500 of 2,000" in text
    assert "measuring rows" not in text.rpartition("12/90")[0].rpartition("╭")[2]


def test_work_before_the_first_step_is_no_line_elsewhere():
    console = Console(file=io.StringIO(), width=80)
    with LiveView("digits", console) as view, view.doing("measuring rows", 10) as advance:
        advance(10)
    assert console.file.getvalue() == "digits\n"


def test_work_between_steps_is_shown_below_them_and_ends():
    console = terminal()
    with LiveView("digits", console) as view:
        view.update(RECORD)
        with view.between_steps("evaluating rows", 2000):
            pass
        view.update(dataclasses.replace(RECORD, step=13))
    text = console.file.getvalue()
    shown = text.rpartition("13/90")[0].rpartition("╰")[0]
    assert "12/90" in shown and "now     evaluating rows: 0 of 2,000" in shown
    assert "evaluating" not in text.rpartition("13/90")[2]


def test_a_run_is_not_done_while_it_evaluates():
    console = terminal()
    last = dataclasses.replace(RECORD, step=90, eta_s=20.0)
    with LiveView("digits", console) as view:
        view.update(last)
        with view.between_steps("evaluating rows", 2000):
            pass
        view.update(dataclasses.replace(last, eta_s=0.0))
    evaluating = console.file.getvalue().rpartition("evaluating")[0].rpartition("╭")[2]
    assert "90/90  0:20 left" in evaluating
    assert "90/90  done" in console.file.getvalue().rpartition("╭")[2]


@pytest.mark.parametrize(("after_s", "lines"), ((-1.0, [0, 400, 1000]), (1e9, [0])))
def test_work_between_steps_is_a_line_at_its_start_and_now_and_then(monkeypatch, after_s, lines):
    monkeypatch.setattr("vlmtune.engine.monitor.LINE_AFTER_S", after_s)
    console = Console(file=io.StringIO(), width=80)
    with LiveView("digits", console) as view, view.between_steps("evaluating rows", 1000) as advance:
        advance(400)
        advance(600)
    assert console.file.getvalue().splitlines()[1:] == [f"evaluating rows: {done:,} of 1,000" for done in lines]


def test_a_long_run_costs_the_view_no_more_than_a_short_one():
    first = dataclasses.replace(RECORD, step=1, eval_loss=0.5)
    gone = weakref.ref(first)
    console = terminal()
    with LiveView("digits", console) as view:
        view.update(first)
        del first
        for step in range(2, 100):
            view.update(dataclasses.replace(RECORD, step=step))
    assert gone() is None, "the panel is drawn from what it shows, not from all records"
    assert "evaluation 0.5000" in console.file.getvalue().rpartition("99/90")[2]


def test_the_panel_holds_as_many_losses_as_it_shows():
    course = Course()
    for step in range(1000):
        course.add(dataclasses.replace(RECORD, loss=float(step)))
    assert list(course.losses) == [float(step) for step in range(940, 1000)]


def test_live_view_leaves_its_last_state_and_the_notes_above_it():
    console = terminal()
    with LiveView("digits", console) as view:
        view.update(RECORD)
        view.warn("the loss scale is small")
        view.update(dataclasses.replace(RECORD, step=90))
    text = console.file.getvalue()
    assert text.index("warning: the loss scale is small") < text.rindex("90/90  done")


def test_an_error_ends_the_view_and_goes_on():
    console = terminal()
    with pytest.raises(KeyboardInterrupt), LiveView("digits", console):
        raise KeyboardInterrupt
    assert console.file.getvalue().endswith("\x1b[?25h"), "the cursor is visible again"


def test_panel_can_be_exported_as_a_picture():
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(render([RECORD], title="digits"))
    assert "6.2&#160;peak" in console.export_svg(title="vlmtune train")


@pytest.mark.parametrize(
    ("values", "line"),
    (
        ([], ""),
        ([1.0], "▁"),
        ([1.0, 1.0], "▁▁"),
        ([0.0, 0.5, 1.0], "▁▅█"),
        ([0.0, math.nan, 1.0, math.inf], "▁×█×"),
        ([math.nan], "×"),
        ([9.0, 0.0, 1.0], "▁█"),
    ),
)
def test_sparkline(values, line):
    assert sparkline(values, width=2 if values[:1] == [9.0] else 60) == line


@pytest.mark.parametrize(
    ("seconds", "text"),
    ((0, "0:00"), (59.6, "1:00"), (192, "3:12"), (3661, "1:01:01"), (-1, "0:00"), (math.inf, "?"), (math.nan, "?")),
)
def test_clock(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    ((0.0, "0.0"), (3.42, "3.4"), (9.97, "10"), (850, "850"), (999.7, "1.0k"), (1234, "1.2k"), (3.1e6, "3.1M")),
)
def test_rates_are_short(rate, text):
    assert f"  {text} tok/s  " in plain_line(dataclasses.replace(RECORD, tokens_per_s=rate))


def test_until_the_first_step_is_done_the_time_left_is_the_predicted_one():
    console = terminal()
    with LiveView("digits", console) as view:
        view.expect(3.5 * 3600)
        with view.doing("measuring rows", 2) as advance:
            advance(1)
        assert view._course.now == "the first step is running, 3:30:00 left as predicted"
        assert view._course.now in console.file.getvalue()
        before = len(console.file.getvalue())
        view.update(RECORD)
    assert "as predicted" not in console.file.getvalue()[before:].rpartition("12/90")[0].rpartition("╭")[2]
