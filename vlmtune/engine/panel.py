"""The panel of the live view, and the line that stands for it where there is no terminal.

Rich only, no torch: the numbers come as StepRecords, so that the panel can be drawn from a log file as well.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vlmtune.runs.records import GpuAtStep, StepRecord
from vlmtune.units import GIB

SPARK_LEVELS = "▁▂▃▄▅▆▇█"
SPARK_VALUES = 60
PANEL_WIDTH = 90
ROOM_FOR_CTRL_C = 3  # the terminal echoes ^C behind the panel; in a new line it would shift the view
HIGH_DATA_WAIT_SHARE = 0.3
NEARLY_FULL_SHARE = 0.95
FIRST_STEP = "the first step is running"


@dataclass
class Course:
    """What the panel shows of a run: as much after a million steps as after a hundred."""

    last: StepRecord | None = None
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=SPARK_VALUES))
    eval_loss: float | None = None
    eval_metrics: dict[str, float] = field(default_factory=dict)
    at_first: str = FIRST_STEP
    """What is said until the first step is done."""
    now: str | None = FIRST_STEP
    """What is done while no step is."""

    def expect(self, left_s: float) -> None:
        """Say until the first step is done how long the run is predicted to take."""
        self.now = self.at_first = f"{FIRST_STEP}, {clock(left_s)} left as predicted"

    def add(self, record: StepRecord) -> None:
        """Go on by one record."""
        self.last, self.now = record, None
        self.losses.append(record.loss)
        self.eval_metrics = record.eval_metrics or self.eval_metrics
        self.eval_loss = self.eval_loss if record.eval_loss is None else record.eval_loss


def render(records: Iterable[StepRecord], *, title: str = "", slowdown_c: int | None = None) -> RenderableType:
    """Return the panel after `records`: the picture that the live view shows."""
    course = Course()
    for record in records:
        course.add(record)
    return panel_of(course, title, slowdown_c)


def panel_of(course: Course, title: str, slowdown_c: int | None) -> RenderableType:
    """Return the panel of a run."""
    rows, last = _grid(), course.last
    if last:
        rows.add_row("step", _step_row(last, is_done=last.step >= last.total_steps and not course.now))
        rows.add_row("loss", _loss_row(last, course))
        if course.eval_metrics:
            rows.add_row("answers", Text("  ".join(_in_words(course.eval_metrics))))
        rows.add_row("rate", _rate_row(last))
        rows.add_row("speed", _speed_row(last))
        rows.add_row(*_memory_row(last))
        if last.gpus:
            rows.add_row("gpus", Text(_gpus_in_words(last.gpus)))
        if last.gpu_temperature_c is not None:
            rows.add_row("heat", _heat_row(last.gpu_temperature_c, slowdown_c))
        rows.add_row("wait", _wait_row(last.data_wait_share))
    if course.now:
        rows.add_row("now" if last else "step", Text(course.now))
    heading = Text(f" {title} ", style="bold") if title else None
    panel = Panel(rows, title=heading, title_align="left", border_style="dim")
    return _Narrowed(panel)


@dataclass(frozen=True)
class _Narrowed:
    """A panel that leaves some columns of the terminal free."""

    panel: Panel

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from console.render(
            self.panel, options.update(width=min(PANEL_WIDTH, options.max_width - ROOM_FOR_CTRL_C))
        )


def plain_line(record: StepRecord, *, slowdown_c: int | None = None) -> str:
    """Return one line of plain text about `record`."""
    evaluated = [f"evaluation loss {record.eval_loss:.3f}"] if record.eval_loss is not None else []
    evaluated += _in_words(record.eval_metrics or {})
    return "  ".join(
        [
            f"step {record.step}/{record.total_steps}",
            f"loss {record.loss:.3f}",
            *evaluated,
            f"lr {record.learning_rate:.1e}",
            f"{_short(record.tokens_per_s)} tok/s",
            f"{_short(record.samples_per_s)} rows/s",
            _plain_gpu(record, slowdown_c),
            f"wait {record.data_wait_share:.0%}",
            *([_gpus_in_words(record.gpus)] if record.gpus else []),
            f"eta {clock(record.eta_s)}",
        ]
    )


def sparkline(values: Sequence[float], width: int = SPARK_VALUES) -> str:
    """Return the last `width` values as a line of block characters, `×` where a value is not finite."""
    shown = values[-width:]
    finite = [value for value in shown if math.isfinite(value)]
    low, span = (min(finite), max(finite) - min(finite)) if finite else (0.0, 0.0)
    top = len(SPARK_LEVELS) - 1

    def mark(value: float) -> str:
        if not math.isfinite(value):
            return "×"
        return SPARK_LEVELS[round((value - low) / span * top) if span else 0]

    return "".join(mark(value) for value in shown)


def clock(seconds: float) -> str:
    """Return seconds as `3:12` or `1:02:03`."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass(frozen=True)
class _Fitted:
    """A piece of text that is made for the width it gets."""

    make: Callable[[int], Text]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the text for this width."""
        yield self.make(options.max_width)


def _grid() -> Table:
    """Return the two columns of the panel: names and values."""
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(ratio=1, overflow="fold")
    return grid


def _beside(stretching: RenderableType, text: Text, *, text_first: bool = False) -> Table:
    """Return one row: `text` at its own width, and `stretching` over the rest."""
    row = Table.grid(padding=(0, 2, 0, 0), expand=True)
    cells: list[tuple[RenderableType, int | None]] = [(stretching, 1), (text, None)]
    if text_first:
        cells.reverse()
    for _, ratio in cells:
        row.add_column(ratio=ratio, no_wrap=True)
    row.add_row(*(cell for cell, _ in cells))
    return row


def _step_row(record: StepRecord, *, is_done: bool) -> RenderableType:
    """Return progress bar, step count and time left."""
    total = max(1, record.total_steps)
    bar = ProgressBar(total=total, completed=record.step, complete_style="cyan", finished_style="green")
    left = ("  done" if is_done else f"  {clock(record.eta_s)} left", "dim")
    return _beside(bar, Text.assemble((f"{record.step}/{record.total_steps}", "bold"), left))


def _loss_row(last: StepRecord, course: Course) -> RenderableType:
    """Return the loss, the last evaluation loss and the course of the loss."""
    text = Text(f"{last.loss:.4f}", style="bold")
    if course.eval_loss is not None:
        text.append(f"  evaluation {course.eval_loss:.4f}", style="not bold")
    losses = tuple(course.losses)
    line = _Fitted(lambda width: Text(sparkline(losses, min(width, SPARK_VALUES)), style="cyan"))
    return _beside(line, text, text_first=True)


def _in_words(metrics: dict[str, float]) -> list[str]:
    return [f"{name} {value:.1%}" for name, value in metrics.items()]


def _rate_row(record: StepRecord) -> Text:
    """Return learning rate, gradient norm and epoch."""
    parts = [f"{record.learning_rate:.1e}"]
    if record.grad_norm is not None:
        parts.append(f"gradient {record.grad_norm:.2f}")
    return Text("  ".join([*parts, f"epoch {record.epoch:.2f}"]))


def _speed_row(record: StepRecord) -> Text:
    """Return tokens and rows per second, and the time since the start."""
    speed = f"{_short(record.tokens_per_s)} tokens/s  {_short(record.samples_per_s)} rows/s"
    return Text(f"{speed}  {clock(record.elapsed_s)} so far")


def _memory_row(record: StepRecord) -> tuple[str, RenderableType]:
    """Return name and bar of the GPU memory, or that there is no GPU."""
    now, peak, limit = record.gpu_memory_bytes, record.gpu_peak_bytes, record.gpu_limit_bytes
    if now is None:
        return "device", Text("CPU")
    peak = max(now, peak or 0)
    if not limit:
        return "memory", Text(f"{_gib(now)} now  {_gib(peak)} GiB peak")
    style = "yellow" if peak > limit * NEARLY_FULL_SHARE else "green"

    def bar(width: int) -> Text:
        until_now, until_peak = (min(width, round(width * part / limit)) for part in (now, peak))
        rest = width - until_peak
        return Text.assemble(("█" * until_now + "▒" * (until_peak - until_now), style), ("░" * rest, "dim"))

    estimated = f" (estimate {_gib(record.gpu_estimate_bytes)})" if record.gpu_estimate_bytes else ""
    return "memory", _beside(_Fitted(bar), Text(f"{_gib(now)} now  {_gib(peak)} peak{estimated}  {_gib(limit)} GiB"))


def _gpus_in_words(gpus: Sequence[GpuAtStep]) -> str:
    """Return what each of several GPUs has taken, and which one the others wait for."""
    slowest = min(range(len(gpus)), key=lambda number: gpus[number].waited_share)
    longest = max(gpu.waited_share for gpu in gpus)
    peaks = [_gib(gpu.peak_bytes) for gpu in gpus if gpu.peak_bytes is not None]
    peak = f"peaks {' '.join(peaks)} GiB, " if peaks else ""
    return f"{peak}others wait up to {longest:.0%} for process {slowest}"


def _heat_row(temperature_c: int, slowdown_c: int | None) -> Text:
    """Return the temperature, and a warning where the card slows itself down."""
    if slowdown_c is None or temperature_c < slowdown_c:
        return Text(f"{temperature_c} °C")
    return Text(f"{temperature_c} °C: the card slows down from {slowdown_c} °C, cool it", style="yellow")


def _wait_row(share: float) -> Text:
    """Return the share of time spent waiting for data, and what to do about a high one."""
    if share <= HIGH_DATA_WAIT_SHARE:
        return Text(f"{share:.0%} of the time for data")
    return Text(f"{share:.0%} of the time for data: raise hardware.num_workers", style="yellow")


def _plain_gpu(record: StepRecord, slowdown_c: int | None) -> str:
    """Return memory now / peak / limit and the temperature, or `cpu`."""
    if record.gpu_memory_bytes is None:
        return "cpu"
    shown = (record.gpu_memory_bytes, record.gpu_peak_bytes, record.gpu_limit_bytes)
    text = f"gpu {'/'.join(_gib(amount) for amount in shown if amount is not None)} GiB"
    if record.gpu_temperature_c is None:
        return text
    text += f" {record.gpu_temperature_c}C"
    is_hot = slowdown_c is not None and record.gpu_temperature_c >= slowdown_c
    return f"{text} (slows down from {slowdown_c}C)" if is_hot else text


def _gib(amount_bytes: int) -> str:
    """Return bytes as GiB with one decimal."""
    return f"{amount_bytes / GIB:.1f}"


def _short(amount: float) -> str:
    """Return an amount in few characters: 3.4, 850, 1.2k, 3.1M."""
    for limit, divisor, unit in ((9.95, 1, ""), (999.5, 0, ""), (999_500, 1000, "k")):
        if amount < limit:
            return f"{amount:.0f}" if divisor == 0 else f"{amount / divisor:.1f}{unit}"
    return f"{amount / 1e6:.1f}M"
