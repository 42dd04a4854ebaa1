"""The report of a run: as JSON for programs, as a page for people."""

import dataclasses
import json
import math
import re

import pytest
from pages import Page, with_all_texts

from vlmtune.runs.histogram import histogram_of_lengths, histogram_of_losses
from vlmtune.runs.memory import Memory, parts_of_peak
from vlmtune.runs.pages.report import render_page, write_report
from vlmtune.runs.records import LongestRow
from vlmtune.units import GIB


def test_report_is_written_as_strict_json_and_as_a_page(folder, a_record, a_report):
    report = a_report(eval_loss=math.nan)
    write_report(folder, report, [a_record(step) for step in (1, 2, 3)])
    written = json.loads(folder.report_json.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert written == {**dataclasses.asdict(report), "eval_loss": None}
    page = Page(folder.report_html.read_text(encoding="utf-8"))
    for text in ("digits", "finished", "0.4000", "from 2.5000", "3 min 12 s", "6.00 GiB", "a note", "1,000 (1.00%)"):
        assert text in page.texts
    assert [tag for tag, _ in page.tags].count("svg") == 3
    assert [attributes["points"].count(",") for tag, attributes in page.tags if tag == "polyline"] == [3] * 5


def test_the_page_needs_nothing_from_elsewhere(folder, a_record, a_report):
    write_report(folder, a_report(), [a_record()])
    text = folder.report_html.read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|<img|url\(|@import|https?:", text)


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
    assert [tag for tag, _ in page.tags].count("svg") == 2


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


def test_the_page_shows_how_rows_and_losses_spread(a_record, a_report):
    before, last = (histogram_of_losses([loss] * 3) for loss in (2.0, 0.0))
    records = [a_record(eval_row_losses=before), a_record(2, eval_row_losses=last), a_record(3)]
    page = Page(render_page(a_report(row_lengths=histogram_of_lengths([5, 5, 9])), records))
    for text in ("Loss of held-out rows", "Length of rows", "tokens of a row to train on", "Learning rate in 10⁻⁴"):
        assert text in page.texts
    bars = [float(attributes["x"]) for tag, attributes in page.tags if tag == "rect"]
    assert len(bars) == 3 and bars[0] < 60, "one bin of the last evaluation, the lowest; two of lengths"


def test_the_page_shows_metrics_of_held_out_answers(a_record, a_report):
    metrics = [{"exact": 0.5, "cer": 0.25}, None, {"exact": 1.0, "cer": 0.0}]
    page = Page(render_page(a_report(), [a_record(step, eval_metrics=one) for step, one in enumerate(metrics, 1)]))
    assert "Held-out answers in %" in page.texts and {"exact", "cer"} <= set(page.texts)
    assert [tag for tag, _ in page.tags].count("circle") == 4


def test_the_page_shows_memory_by_part(a_record, a_report):
    measured = Memory(6 * GIB, 5 * GIB, parts_of_peak(3 * GIB, 4 * GIB, 5 * GIB))
    peaks = (5 * GIB, 6 * GIB)
    now = {"gpu_allocated_bytes": 4 * GIB}
    records = [a_record(step, **now, gpu_allocated_peak_bytes=peak) for step, peak in enumerate(peaks, 1)]
    page = Page(render_page(a_report(memory_measured=measured), records))
    tops = [attributes["points"].split()[:2] for tag, attributes in page.tags if tag == "polygon"]
    assert "GPU memory by part in GiB" in page.texts and "Peak by part in GiB" not in page.texts
    assert [top.split(",")[1] for area in tops for top in area] == ["95.0", "95.0", "66.7", "66.7", "38.3", "10.0"]
    estimated = Memory(7 * GIB, 5 * GIB, parts_of_peak(3 * GIB, 4 * GIB, 5 * GIB))
    page = Page(render_page(a_report(memory_measured=measured, memory_estimated=estimated), []))
    heights = [float(attributes["height"]) for tag, attributes in page.tags if tag == "rect"]
    assert "Peak by part in GiB" in page.texts and heights[-1] == heights[-2] / 2 * 1, (
        "of what lies free in the allocator"
    )
