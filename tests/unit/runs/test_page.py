"""The report of a run: as JSON for programs, as a page for people."""

import dataclasses
import json
import math
import re
from html.parser import HTMLParser

import pytest

from vlmtune.runs.memory import Memory
from vlmtune.runs.page import Series, make_chart, render_page, write_report
from vlmtune.runs.records import LongestRow
from vlmtune.units import GIB


class Page(HTMLParser):
    """Collects the tags and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_report_is_written_as_strict_json_and_as_a_page(folder, a_record, a_report):
    report = a_report(eval_loss=math.nan)
    write_report(folder, report, [a_record(step) for step in (1, 2, 3)])
    written = json.loads(folder.report_json.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert written == {**dataclasses.asdict(report), "eval_loss": None}
    page = Page(folder.report_html.read_text(encoding="utf-8"))
    for text in ("digits", "finished", "0.4000", "from 2.5000", "3 min 12 s", "6.00 GiB", "a note", "1,000 (1.00%)"):
        assert text in page.texts
    assert [tag for tag, _ in page.tags].count("svg") == 2
    assert [attributes["points"].count(",") for tag, attributes in page.tags if tag == "polyline"] == [3, 3, 3, 3]


def test_the_page_needs_nothing_from_elsewhere(folder, a_record, a_report):
    write_report(folder, a_report(), [a_record()])
    text = folder.report_html.read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|<img|url\(|@import|https?:", text)


def with_all_texts(value, text):
    """A value of a report with every text in it replaced."""
    if isinstance(value, str):
        return text
    if isinstance(value, list):
        return [with_all_texts(item, text) for item in value]
    if isinstance(value, dict):
        return {with_all_texts(key, text): with_all_texts(item, text) for key, item in value.items()}
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(value, **with_all_texts_in_fields(value, text))
    return value


def with_all_texts_in_fields(value, text):
    return {field.name: with_all_texts(getattr(value, field.name), text) for field in dataclasses.fields(value)}


def test_the_page_shows_what_users_wrote_as_text(folder, a_record, a_report):
    evil, turned = """<script>'"</script>""", "\u202e"
    report = a_report(skipped=["a row"], longest_row=LongestRow("rows.jsonl:1", 9))
    plain = Page(render_page(report, [a_record()]))
    page = Page(text := render_page(with_all_texts(report, evil + turned), [a_record()]))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags] and turned not in text
    assert sum(evil in shown for shown in page.texts) >= 9


def test_a_cpu_run_without_evaluation_has_a_page(folder, a_record, a_report):
    nothing = {"gpu_memory_bytes": None, "gpu_peak_bytes": None, "gpu_limit_bytes": None, "gpu_temperature_c": None}
    report = a_report(gpu=None, peak_allocated_bytes=None, peak_reserved_bytes=None, eval_loss=None, longest_row=None)
    write_report(folder, report, [a_record(step, **nothing) for step in (1, 2)])
    page = Page(folder.report_html.read_text(encoding="utf-8"))
    assert "CPU" in page.texts and "no evaluation data" in page.texts
    assert [tag for tag, _ in page.tags].count("svg") == 1


def test_the_page_shows_memory_as_estimated_and_as_measured(folder, a_record, a_report):
    parts = {"weights and adapters": 3 * GIB, "optimizer and workspaces": GIB, "step": GIB}
    report = a_report(memory_measured=Memory(6 * GIB, 5 * GIB, parts))
    write_report(folder, report, [a_record(step) for step in (1, 2)])
    without = Page(folder.report_html.read_text(encoding="utf-8")).texts
    assert "peak reserved" in without and "6.00 GiB" in without and "estimated peak" not in without
    report = dataclasses.replace(report, memory_estimated=Memory(11 * GIB // 2, 9 * GIB // 2, parts))
    write_report(folder, report, [a_record(step, gpu_estimate_bytes=11 * GIB // 2) for step in (1, 2)])
    with_estimate = Page(folder.report_html.read_text(encoding="utf-8")).texts
    for text in (
        "6.00 GiB, estimated 5.50 GiB",
        "5.00 GiB, estimated 4.50 GiB",
        "optimizer and workspaces",
        "estimated peak",
    ):
        assert text in with_estimate
    values = json.loads(folder.report_json.read_text())
    assert values["memory_estimated"]["peak_reserved_bytes"] == 11 * GIB // 2
    assert values["memory_measured"]["parts"] == parts


def test_a_run_without_records_has_a_page(folder, a_report):
    write_report(folder, a_report(status="interrupted", steps=0, total_parameters=0), [])
    assert "<svg" not in folder.report_html.read_text(encoding="utf-8")


def test_a_curve_is_interrupted_where_the_loss_is_not_a_number():
    losses = [2.0, 1.0, math.nan, 1.0, math.nan, 1.0, 0.5]
    chart = make_chart("Loss", [Series("training", "first", list(enumerate(losses)))])
    assert [segment.count(",") for segment in chart.curves[0].segments] == [2, 2]
    assert len(chart.curves[0].dots) == 1, "a value between two gaps is a dot"
    assert make_chart("Loss", [Series("training", "first", [(1, math.nan)])]) is None


@pytest.mark.parametrize("top", (0.0, 1e-6, 0.37, 1.0, 9.99, 12345.0))
def test_an_axis_covers_its_values_with_few_round_ticks(top):
    chart = make_chart("Loss", [Series("training", "first", [(1, 0.0), (40, top)])])
    labels = [float(label) for _, label in chart.y_ticks]
    assert labels[0] == 0.0 and labels[-1] >= top * 0.999
    assert (3 if top else 2) <= len(labels) <= 7
    assert all(0 <= y <= 232 for y, _ in chart.y_ticks)
