"""The one-page HTML report: numbers and curve geometry here, the page itself in `templates/report.html.j2`.

The page carries everything in itself: no script, no font, no network.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vlmtune.files import write_atomically
from vlmtune.printing import printable
from vlmtune.runs.folder import RunFolder
from vlmtune.runs.memory import compare
from vlmtune.runs.records import StepRecord, TrainReport
from vlmtune.units import GIB

LEFT_PX, RIGHT_PX, TOP_PX, BOTTOM_PX = 52, 708, 12, 196

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """One line of a chart, in SVG coordinates."""

    label: str
    style: str
    segments: list[str]
    dots: list[Point]


@dataclass(frozen=True)
class Chart:
    """One chart, ready to be drawn."""

    title: str
    curves: list[Curve]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class Series:
    """The values of one curve over the steps; a value that is not finite interrupts the line."""

    label: str
    style: str
    points: Sequence[Point]
    with_dots: bool = False


def write_report(folder: RunFolder, report: TrainReport, records: Sequence[StepRecord]) -> None:
    """Write `report.json` and the one-page `report.html`."""
    write_atomically(folder.report_html, render_page(report, records))
    # Last, because a run with a report.json counts as finished.
    write_atomically(folder.report_json, report.to_json())


def render_page(report: TrainReport, records: Sequence[StepRecord]) -> str:
    """Return the report as one HTML page."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vlmtune.runs"),
        autoescape=True,
        finalize=lambda value: printable(value) if isinstance(value, str) else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts = [chart for chart in (_loss_chart(records), _memory_chart(records)) if chart]
    return environment.get_template("report.html.j2").render(
        report=report, tiles=_tiles(report), tables=_tables(report), charts=charts
    )


def make_chart(title: str, series: Iterable[Series]) -> Chart | None:
    """Return a chart of the series over a y axis from zero, or None when no series has a finite value."""
    drawn = [one for one in series if any(math.isfinite(y) for _, y in one.points)]
    if not drawn:
        return None
    xs = [x for one in drawn for x, _ in one.points]
    y_ticks = _ticks(0.0, max(y for one in drawn for _, y in one.points if math.isfinite(y)))
    x_low, x_span, y_high = min(xs), (max(xs) - min(xs)) or 1.0, y_ticks[-1]

    def place(x: float, y: float) -> Point:
        across = LEFT_PX + (x - x_low) / x_span * (RIGHT_PX - LEFT_PX)
        return round(across, 1), round(BOTTOM_PX - y / y_high * (BOTTOM_PX - TOP_PX), 1)

    steps = [tick for tick in _ticks(x_low, max(xs), whole=True) if x_low <= tick <= max(xs)]
    return Chart(
        title=title,
        curves=[_curve(one, [place(x, y) for x, y in one.points]) for one in drawn],
        x_ticks=[(place(tick, 0)[0], f"{tick:g}") for tick in steps],
        y_ticks=[(place(0, tick)[1], f"{tick:g}") for tick in y_ticks],
    )


def _loss_chart(records: Sequence[StepRecord]) -> Chart | None:
    """Return the chart of training and evaluation loss."""
    evaluated = [(record.step, record.eval_loss) for record in records if record.eval_loss is not None]
    return make_chart(
        "Loss",
        [
            Series("training", "first", [(record.step, record.loss) for record in records]),
            Series("evaluation", "second", evaluated, with_dots=True),
        ],
    )


def _memory_chart(records: Sequence[StepRecord]) -> Chart | None:
    """Return the chart of GPU memory: now, peak, what was estimated, and limit."""

    def series(label: str, style: str, amounts: Iterable[int | None]) -> Series:
        points = zip((record.step for record in records), amounts, strict=True)
        return Series(label, style, [(step, amount / GIB) for step, amount in points if amount is not None])

    return make_chart(
        "GPU memory in GiB",
        [
            series("now", "first", (record.gpu_memory_bytes for record in records)),
            series("peak", "second", (record.gpu_peak_bytes for record in records)),
            series("estimated peak", "estimate", (record.gpu_estimate_bytes for record in records)),
            series("limit", "limit", (record.gpu_limit_bytes for record in records)),
        ],
    )


def _curve(series: Series, placed: Sequence[Point]) -> Curve:
    """Return the series in SVG coordinates, cut into segments where a value is not finite."""
    segments: list[list[Point]] = [[]]
    for point in placed:
        if math.isfinite(point[1]):
            segments[-1].append(point)
        elif segments[-1]:
            segments.append([])
    alone = [segment[0] for segment in segments if len(segment) == 1]
    return Curve(
        label=series.label,
        style=series.style,
        segments=[" ".join(f"{x},{y}" for x, y in segment) for segment in segments if len(segment) > 1],
        dots=[point for segment in segments for point in segment] if series.with_dots else alone,
    )


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Return three to seven round numbers that cover `low` to `high`."""
    span = (high - low) or abs(high) or 1.0
    rough = span / 5
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(magnitude * factor for factor in (1, 2, 5, 10) if magnitude * factor >= rough * 0.999)
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step), math.ceil(round(high / step, 6))
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def _tiles(report: TrainReport) -> list[tuple[str, str, str]]:
    """Return the four numbers at the top: name, value and a line below it."""
    rate = f"{report.samples_per_s:.2f} rows/s"
    memory = ("GPU memory peak", _gib(report.peak_reserved_bytes), report.gpu or "")
    return [
        ("training loss", _loss(report.train_loss_last), f"from {_loss(report.train_loss_first)}"),
        ("evaluation loss", _loss(report.eval_loss), "" if report.eval_loss is not None else "no evaluation data"),
        ("time", _duration(report.seconds), rate),
        memory if report.peak_reserved_bytes is not None else ("device", report.gpu or "CPU", report.precision),
    ]


def _tables(report: TrainReport) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the tables of the page: title, and rows of name and value."""
    share = report.trainable_parameters / max(1, report.total_parameters)
    longest = report.longest_row
    data = [
        ("rows", f"{report.num_rows:,}"),
        ("rows skipped", f"{report.num_skipped_rows:,}"),
        ("rows cut", f"{report.num_cut_rows:,} ({report.num_cut_tokens:,} tokens)"),
        ("text tokens", f"{report.text_tokens:,}"),
        ("image tokens", f"{report.image_tokens:,}"),
        ("trained tokens", f"{report.trained_tokens:,}"),
        ("longest row", f"{longest.where} ({longest.tokens:,} tokens)" if longest else "–"),
    ]
    run = [
        ("steps", f"{report.steps:,}"),
        *((f"{name} of held-out answers", f"{value:.1%}") for name, value in (report.eval_metrics or {}).items()),
        ("parameters", f"{report.total_parameters:,}"),
        ("trainable", f"{report.trainable_parameters:,} ({share:.2%})"),
        ("precision", report.precision),
        ("device", report.gpu or "CPU"),
        ("speed", f"{report.tokens_per_s:,.0f} tokens/s"),
        ("waiting for data", f"{report.data_wait_share:.0%} of the time"),
    ]
    memory = [("Memory", _memory_rows(report))] if report.memory_measured else []
    return [("Run", run), *memory, ("Data", data), ("Versions", list(report.versions.items()))]


def _memory_rows(report: TrainReport) -> list[tuple[str, str]]:
    """Return the peaks and their parts as measured, each with its estimate where there is one."""
    return [
        (
            row.name,
            _gib(row.measured_bytes)
            + (f", estimated {_gib(row.estimated_bytes)}" if row.estimated_bytes is not None else ""),
        )
        for row in compare(report.memory_estimated, report.memory_measured)
    ]


def _loss(value: float | None) -> str:
    """Return a loss with four decimals, or a dash."""
    return f"{value:.4f}" if value is not None and math.isfinite(value) else "–"


def _gib(amount_bytes: int | None) -> str:
    """Return bytes as GiB, or a dash."""
    return f"{amount_bytes / GIB:.2f} GiB" if amount_bytes is not None else "–"


def _duration(seconds: float) -> str:
    """Return seconds as `2 h 05 min`, `3 min 12 s` or `48 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
