"""The one-page HTML report of a run: its numbers here, the page itself in `templates/report.html.j2`."""

import math
from collections.abc import Iterable, Sequence

from vlmtune.files import write_atomically
from vlmtune.runs.folder import RunFolder
from vlmtune.runs.memory import OF_OPTIMIZER, OF_STEP, OF_WEIGHTS, Memory, compare
from vlmtune.runs.pages.charts import STYLES, Chart, Series, columns_chart, histogram_chart, line_chart, stacked_chart
from vlmtune.runs.pages.rendering import render
from vlmtune.runs.records import StepRecord, TrainReport
from vlmtune.units import GIB

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def write_report(folder: RunFolder, report: TrainReport, records: Sequence[StepRecord]) -> None:
    """Write `report.json` and the one-page `report.html`."""
    write_atomically(folder.report_html, render_page(report, records))
    # Last, because a run with a report.json counts as finished.
    write_atomically(folder.report_json, report.to_json())


def render_page(report: TrainReport, records: Sequence[StepRecord]) -> str:
    """Return the report as one HTML page."""
    charts = (
        _loss_chart(records),
        _metrics_chart(records),
        _learning_rate_chart(records),
        _row_losses_chart(records),
        _lengths_chart(report),
        _memory_chart(records),
        _parts_chart(report, records),
        _estimate_chart(report),
    )
    shown = [chart for chart in charts if chart]
    return render("report.html.j2", report=report, tiles=_tiles(report), tables=_tables(report), charts=shown)


def _loss_chart(records: Sequence[StepRecord]) -> Chart | None:
    """Return the chart of training and evaluation loss."""
    evaluated = [(record.step, record.eval_loss) for record in records if record.eval_loss is not None]
    return line_chart(
        "Loss",
        [
            Series("training", "first", [(record.step, record.loss) for record in records]),
            Series("evaluation", "second", evaluated, with_dots=True),
        ],
    )


def _metrics_chart(records: Sequence[StepRecord]) -> Chart | None:
    """Return the chart of the metrics of held-out answers; those that have no colour of their own are in the table."""
    answered = [(record.step, record.eval_metrics) for record in records if record.eval_metrics]
    names = dict.fromkeys(name for _, metrics in answered for name in metrics)
    series = [
        Series(name, style, [(step, 100 * metrics[name]) for step, metrics in answered if name in metrics], True)
        for name, style in zip(names, STYLES, strict=False)
    ]
    return line_chart("Held-out answers in %", series)


def _learning_rate_chart(records: Sequence[StepRecord]) -> Chart | None:
    """Return the chart of the learning rate, in the power of ten of the highest."""
    highest = max((record.learning_rate for record in records), default=0.0)
    if not highest > 0:
        return None
    power = math.floor(math.log10(highest))
    rates = [(record.step, record.learning_rate / 10**power) for record in records]
    unit = f"10{str(power).translate(SUPERSCRIPTS)}"
    return line_chart(f"Learning rate in {unit}", [Series("learning rate", "first", rates)])


def _row_losses_chart(records: Sequence[StepRecord]) -> Chart | None:
    """Return how the losses of the held-out rows spread at the last evaluation."""
    last = next((record.eval_row_losses for record in reversed(records) if record.eval_row_losses), None)
    return (
        histogram_chart("Loss of held-out rows", "loss of a row at the last evaluation", [("rows", last)])
        if last
        else None
    )


def _lengths_chart(report: TrainReport) -> Chart | None:
    lengths = report.row_lengths
    return histogram_chart("Length of rows", "tokens of a row to train on", [("rows", lengths)]) if lengths else None


def _memory_chart(records: Sequence[StepRecord]) -> Chart | None:
    """Return the chart of GPU memory: now, peak, what was estimated, and limit."""

    def series(label: str, style: str, amounts: Iterable[int | None]) -> Series:
        points = zip((record.step for record in records), amounts, strict=True)
        return Series(label, style, [(step, amount / GIB) for step, amount in points if amount is not None])

    return line_chart(
        "GPU memory in GiB",
        [
            series("now", "first", (record.gpu_memory_bytes for record in records)),
            series("peak", "second", (record.gpu_peak_bytes for record in records)),
            series("estimated peak", "estimate", (record.gpu_estimate_bytes for record in records)),
            series("limit", "limit", (record.gpu_limit_bytes for record in records)),
        ],
    )


def _parts_chart(report: TrainReport, records: Sequence[StepRecord]) -> Chart | None:
    """Return what the allocated peak was made of at each logged step."""
    sizes = [
        (record.step, record.gpu_allocated_bytes, record.gpu_allocated_peak_bytes)
        for record in records
        if record.gpu_allocated_bytes is not None and record.gpu_allocated_peak_bytes is not None
    ]
    if not report.memory_measured or not sizes:
        return None
    loaded = report.memory_measured.parts[OF_WEIGHTS]

    def series(label: str, style: str, amounts: Iterable[int]) -> Series:
        return Series(
            label, style, [(step, max(0, amount) / GIB) for (step, *_), amount in zip(sizes, amounts, strict=True)]
        )

    return stacked_chart(
        "GPU memory by part in GiB",
        [
            series(OF_WEIGHTS, "first", (loaded for _ in sizes)),
            series(OF_OPTIMIZER, "second", (now - loaded for _, now, _ in sizes)),
            series(OF_STEP, "third", (peak - now for _, now, peak in sizes)),
        ],
    )


def _estimate_chart(report: TrainReport) -> Chart | None:
    """Return the peak by part, estimated beside measured."""
    estimated, measured = report.memory_estimated, report.memory_measured
    if not estimated or not measured:
        return None

    def sizes_gib(memory: Memory) -> dict[str, float]:
        free_inside = memory.peak_reserved_bytes - memory.peak_allocated_bytes
        return {name: size / GIB for name, size in {**memory.parts, "free in the allocator": free_inside}.items()}

    expected, found = sizes_gib(estimated), sizes_gib(measured)
    parts = {name: (expected[name], size) for name, size in found.items()}
    return columns_chart("Peak by part in GiB", ("estimated", "measured"), parts)


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
