"""Charts of a page, in SVG coordinates; `templates/parts.html.j2` draws them.

A chart is as wide as a phone, so that its letters have the same size there and on a desk.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vlmtune.runs.histogram import Histogram, round_step

WIDTH_PX, HEIGHT_PX = 360, 220
LEFT_PX, RIGHT_PX, TOP_PX, BOTTOM_PX = 44, 352, 10, 180
MOST_LABELS = 6
LEAST_BAR_PX = 1.5
"""A row among a million is seen."""

STYLES = ("first", "second", "third", "rest")
"""Colours of `page.css` for series of which none is special."""

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, width, height."""


@dataclass(frozen=True)
class Curve:
    """What a chart shows of one series."""

    label: str
    style: str
    lines: list[str] = field(default_factory=list)
    dots: list[Point] = field(default_factory=list)
    bars: list[Box] = field(default_factory=list)
    areas: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Chart:
    """One chart, ready to be drawn."""

    title: str
    axis: str
    """What runs from left to right."""
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


@dataclass(frozen=True)
class Frame:
    """Where values lie in a chart: x from `low` to `high`, y from zero to `top`."""

    low: float
    high: float
    top: float
    counts: bool = False
    """Whether y counts something: then its ticks are whole."""

    def place(self, x: float, y: float) -> Point:
        """Return a point in SVG coordinates."""
        across = (x - self.low) / ((self.high - self.low) or 1.0)
        up = y / self.top
        return round(LEFT_PX + across * (RIGHT_PX - LEFT_PX), 1), round(BOTTOM_PX - up * (BOTTOM_PX - TOP_PX), 1)

    def bar(self, left: float, right: float, low: float, high: float) -> Box:
        """Return a box between two places of x and two of y; one with a height is seen."""
        (x, bottom), (x_right, top) = self.place(left, low), self.place(right, high)
        height = max(bottom - top, LEAST_BAR_PX) if high > low else 0.0
        return x, round(bottom - height, 1), round(x_right - x, 1), round(height, 1)

    def y_ticks(self) -> list[tuple[float, str]]:
        """Return where the y axis is labelled."""
        return [(self.place(self.low, tick)[1], label(tick)) for tick in ticks(0.0, self.top, whole=self.counts)]


def line_chart(title: str, series: Iterable[Series]) -> Chart | None:
    """Return a chart over the steps, y from zero, or None when no series has a finite value."""
    drawn = [one for one in series if any(math.isfinite(y) for _, y in one.points)]
    if not drawn:
        return None
    frame = _frame_of([point for one in drawn for point in one.points])
    curves = [_curve(one, [frame.place(*point) for point in one.points]) for one in drawn]
    return Chart(title, "step", curves, _step_ticks(frame), frame.y_ticks())


def stacked_chart(title: str, series: Sequence[Series]) -> Chart | None:
    """Return a chart of series on top of each other over the same steps; None where there are none."""
    if not series or not series[0].points:
        return None
    steps = [step for step, _ in series[0].points]
    heights = [[0.0] * len(steps)]
    for one in series:
        heights.append([below + y for below, (_, y) in zip(heights[-1], one.points, strict=True)])
    frame = _frame_of([*zip(steps, heights[-1], strict=True)])
    curves = []
    for one, low, high in zip(series, heights, heights[1:], strict=False):
        edge = [*zip(steps, high, strict=True), *reversed([*zip(steps, low, strict=True)])]
        curves.append(Curve(one.label, one.style, areas=[_path([frame.place(*point) for point in edge])]))
    return Chart(title, "step", curves, _step_ticks(frame), frame.y_ticks())


def columns_chart(title: str, columns: Sequence[str], parts: dict[str, Sequence[float]]) -> Chart:
    """Return a chart with one column a name, each made of the parts, [one a column], lowest first."""
    frame = Frame(0, len(columns), _top([sum(sizes) for sizes in zip(*parts.values(), strict=True)]))
    below = [0.0] * len(columns)
    curves = []
    for number, (name, sizes) in enumerate(parts.items()):
        high = [low + max(0.0, size) for low, size in zip(below, sizes, strict=True)]
        bars = [
            frame.bar(place + 0.25, place + 0.75, *ends) for place, ends in enumerate(zip(below, high, strict=True))
        ]
        curves.append(Curve(name, STYLES[number], bars=bars))
        below = high
    x_ticks = [(frame.place(place + 0.5, 0)[0], name) for place, name in enumerate(columns)]
    return Chart(title, "", curves, x_ticks, frame.y_ticks())


def histogram_chart(title: str, axis: str, histograms: Iterable[tuple[str, Histogram]]) -> Chart | None:
    """Return a chart of histograms with the same edges, their bars side by side; None where all are empty."""
    shown = [(name, one) for name, one in histograms if any(one.counts)]
    if not shown:
        return None
    edges = shown[0][1].edges
    top = ticks(0.0, max(count for _, one in shown for count in one.counts), whole=True)[-1]
    frame = Frame(0, len(edges), top, counts=True)
    share = 0.9 / len(shown)
    curves = []
    for number, (name, one) in enumerate(shown):
        left = 0.05 + number * share
        bars = [frame.bar(place + left, place + left + share, 0, count) for place, count in enumerate(one.counts)]
        curves.append(Curve(name, STYLES[number], bars=[bar for bar in bars if bar[3]]))
    return Chart(title, axis, curves, _edge_ticks(edges, frame), frame.y_ticks())


def label(tick: float) -> str:
    """Return a tick in few letters: `0.05`, `500`, `20k`, `3M`."""
    if abs(tick) >= 1e6:
        return f"{tick / 1e6:g}M"
    return f"{tick / 1e3:g}k" if abs(tick) >= 1e4 else f"{tick:g}"


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Return three to seven round numbers that cover `low` to `high`."""
    step = round_step(((high - low) or abs(high) or 1.0) / 5)
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step), math.ceil(round(high / step, 6))
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def _frame_of(points: Sequence[Point]) -> Frame:
    xs = [x for x, _ in points]
    return Frame(min(xs), max(xs), _top([y for _, y in points if math.isfinite(y)]))


def _top(values: Iterable[float]) -> float:
    return ticks(0.0, max(values))[-1]


def _step_ticks(frame: Frame) -> list[tuple[float, str]]:
    whole = ticks(frame.low, frame.high, whole=True)
    return [(frame.place(tick, 0)[0], label(tick)) for tick in whole if frame.low <= tick <= frame.high]


def _edge_ticks(edges: Sequence[float], frame: Frame) -> list[tuple[float, str]]:
    """Return labels of some edges, each at the left of its bin: evenly, or powers of ten where those are there."""
    tens = [place for place, edge in enumerate(edges) if edge and math.log10(edge).is_integer()]
    every = math.ceil(len(edges) / MOST_LABELS)
    places = tens if 2 < len(tens) <= MOST_LABELS else range(0, len(edges), every)
    return [(frame.place(place, 0)[0], label(edges[place])) for place in places]


def _curve(series: Series, placed: Sequence[Point]) -> Curve:
    """Return the series in SVG coordinates, cut into lines where a value is not finite."""
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
        lines=[_path(segment) for segment in segments if len(segment) > 1],
        dots=[point for segment in segments for point in segment] if series.with_dots else alone,
    )


def _path(points: Iterable[Point]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)
