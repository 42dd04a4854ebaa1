"""Charts: what values become on the page."""

import math

import pytest

from vlmtune.runs.histogram import Histogram
from vlmtune.runs.pages.charts import (
    BOTTOM_PX,
    HEIGHT_PX,
    LEAST_BAR_PX,
    LEFT_PX,
    RIGHT_PX,
    Series,
    columns_chart,
    histogram_chart,
    label,
    line_chart,
    stacked_chart,
    ticks,
)


def test_a_curve_is_interrupted_where_the_loss_is_not_a_number():
    losses = [2.0, 1.0, math.nan, 1.0, math.nan, 1.0, 0.5]
    chart = line_chart("Loss", [Series("training", "first", list(enumerate(losses)))])
    assert [line.count(",") for line in chart.curves[0].lines] == [2, 2]
    assert len(chart.curves[0].dots) == 1, "a value between two gaps is a dot"
    assert line_chart("Loss", [Series("training", "first", [(1, math.nan)])]) is None


@pytest.mark.parametrize("top", (0.0, 1e-6, 0.37, 1.0, 9.99, 12345.0))
def test_an_axis_covers_its_values_with_few_round_ticks(top):
    marks = ticks(0.0, top)
    assert marks[0] == 0.0 and marks[-1] >= top * 0.999
    assert (3 if top else 2) <= len(marks) <= 7
    chart = line_chart("Loss", [Series("training", "first", [(1, 0.0), (40, top)])])
    assert all(0 <= y <= HEIGHT_PX for y, _ in chart.y_ticks)


@pytest.mark.parametrize(
    ("tick", "shown"), [(0.0, "0"), (0.05, "0.05"), (5000, "5000"), (20_000, "20k"), (2_500_000, "2.5M")]
)
def test_labels_are_short(tick, shown):
    assert label(tick) == shown


def test_two_histograms_stand_side_by_side_and_a_single_row_is_seen():
    many, one = Histogram([0.0, 0.1, 1.0], [0, 10_000, 0]), Histogram([0.0, 0.1, 1.0], [1, 0, 0])
    chart = histogram_chart("Loss", "loss", [("after", many), ("before", one)])
    [[left, top, width, height]], [[_, _, _, least]] = (curve.bars for curve in chart.curves)
    assert top + height == BOTTOM_PX and least == LEAST_BAR_PX
    assert LEFT_PX < left < left + width < RIGHT_PX
    assert histogram_chart("Loss", "loss", [("none", Histogram([0.0], [0]))]) is None
    few = histogram_chart("Length", "tokens", [("rows", Histogram([0.0, 1.0, 2.0], [1, 2, 0]))])
    assert [text for _, text in few.y_ticks] == ["0", "1", "2"], "there is no half of a row"


def test_powers_of_ten_are_labelled_where_a_histogram_has_them():
    edges = [0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]
    chart = histogram_chart("Loss", "loss", [("rows", Histogram(edges, [1] * 8))])
    assert [text for _, text in chart.x_ticks] == ["0.1", "1", "10"]
    even = histogram_chart("Length", "tokens", [("rows", Histogram([float(edge) for edge in range(40, 64)], [1] * 24))])
    assert [text for _, text in even.x_ticks] == ["40", "44", "48", "52", "56", "60"]


def test_stacked_areas_lie_on_each_other():
    chart = stacked_chart(
        "Memory", [Series("a", "first", [(1, 1.0), (2, 1.0)]), Series("b", "second", [(1, 1.0), (2, 3.0)])]
    )
    [low], [high] = (curve.areas for curve in chart.curves)
    assert low.split()[:2] == high.split()[:1:-1], "where one ends the next begins"
    assert stacked_chart("Memory", []) is None


def test_parts_of_columns_lie_on_each_other_and_none_is_below_nothing():
    chart = columns_chart("Peak", ("estimated", "measured"), {"a": (1.0, 2.0), "b": (1.0, -1.0)})
    (first, _), (second, none) = (curve.bars for curve in chart.curves)
    assert second[1] + second[3] == pytest.approx(first[1]) and none[3] == 0
    assert [text for _, text in chart.x_ticks] == ["estimated", "measured"]
