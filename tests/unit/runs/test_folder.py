import dataclasses
import json
import math
import re
from html.parser import HTMLParser

import pytest

from vlmtune.errors import VlmtuneError
from vlmtune.runs.folder import LongestRow, RunFolder, StepRecord, TrainReport, library_versions, write_report
from vlmtune.runs.memory import Memory
from vlmtune.runs.page import Series, make_chart
from vlmtune.units import GIB


def a_record(step=1, **changes):
    record = StepRecord(
        step=step, total_steps=10, epoch=0.5, loss=1.5, learning_rate=1e-4, grad_norm=0.7, tokens_per_s=100.0,
        samples_per_s=2.0, data_wait_share=0.1, elapsed_s=5.0, eta_s=45.0, gpu_memory_bytes=5 * GIB,
        gpu_peak_bytes=6 * GIB, gpu_limit_bytes=8 * GIB, gpu_temperature_c=60,
    )  # fmt: skip
    return dataclasses.replace(record, **changes)


def a_report(**changes):
    report = TrainReport(
        experiment_name="digits", model="org/model", method="qlora", status="finished", steps=10,
        train_loss_first=2.5, train_loss_last=0.4, eval_loss=0.5, num_rows=100, num_skipped_rows=1,
        skipped=["train.jsonl:7: the answer is empty"], num_cut_rows=2, num_cut_tokens=30, text_tokens=1000,
        image_tokens=20000, trained_tokens=300, longest_row=LongestRow("train.jsonl:9", 412),
        trainable_parameters=1000, total_parameters=100_000, seconds=192.0, samples_per_s=2.0, tokens_per_s=100.0,
        data_wait_share=0.1, peak_allocated_bytes=5 * GIB, peak_reserved_bytes=6 * GIB, gpu="a card",
        precision="bf16", versions={"vlmtune": "0.1.0"}, notes=["a note"],
    )  # fmt: skip
    return dataclasses.replace(report, **changes)


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "runs" / "digits")


def test_a_new_run_folder_takes_no_others_place(tmp_path, folder):
    assert RunFolder.create(folder.path) == folder, "an empty folder may be used"
    folder.config.write_text("x")
    with pytest.raises(VlmtuneError) as caught:
        RunFolder.create(folder.path)
    assert str(caught.value) == (
        f"{folder.path} already holds a run\n"
        "hint: continue it with --resume, or choose another experiment_name"
    )  # fmt: skip
    (tmp_path / "file").write_text("x")
    with pytest.raises(VlmtuneError, match="file is a file, not a folder"):
        RunFolder.create(tmp_path / "file")
    with pytest.raises(VlmtuneError, match="cannot create the run folder .*: Not a directory"):
        RunFolder.create(tmp_path / "file" / "run")


def test_only_a_run_folder_opens(tmp_path, folder):
    with pytest.raises(VlmtuneError, match="there is no run folder"):
        RunFolder.open_existing(tmp_path / "nothing")
    with pytest.raises(VlmtuneError, match="is not a run folder: it has no plan.json"):
        RunFolder.open_existing(tmp_path)
    folder.plan.write_text("{}")
    assert RunFolder.open_existing(folder.path) == folder


def test_the_latest_checkpoint_is_the_highest_complete_one(folder):
    assert folder.latest_checkpoint() is None
    for name, is_complete in (
        ("checkpoint-9", True),
        ("checkpoint-100", True),
        ("checkpoint-200", False),
        ("checkpoint-300.partial", True),
    ):
        (folder.checkpoints / name).mkdir(parents=True)
        (folder.checkpoints / name / "adapter_model.safetensors").touch()
        if is_complete:
            (folder.checkpoints / name / "COMPLETE").touch()
    assert folder.latest_checkpoint() == folder.checkpoints / "checkpoint-100"


def test_log_returns_what_was_appended(folder):
    records = [a_record(1), a_record(2, grad_norm=None, gpu_memory_bytes=None, eval_loss=0.25)]
    assert folder.read_log() == []
    for record in records:
        folder.append_log(record)
    assert folder.read_log() == records


def test_log_holds_null_for_nan_and_reads_it_back(folder):
    folder.append_log(a_record(loss=math.nan, grad_norm=math.inf))
    line = json.loads(folder.log.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert line["loss"] is None and line["grad_norm"] is None
    (record,) = folder.read_log()
    assert math.isnan(record.loss) and record.grad_norm is None


@pytest.mark.parametrize("lost", (1, 2, 60, 150))
def test_a_cut_last_line_is_left_out_and_repaired(folder, lost):
    for step in (1, 2, 3):
        folder.append_log(a_record(step))
    folder.log.write_bytes(folder.log.read_bytes()[: -1 - lost])
    assert [record.step for record in folder.read_log()] == [1, 2]
    folder.truncate_log(2)
    folder.append_log(a_record(3))
    assert [record.step for record in folder.read_log()] == [1, 2, 3]


def test_truncating_the_log_drops_the_steps_after_the_checkpoint(folder):
    for step in range(1, 8):
        folder.append_log(a_record(step))
    folder.truncate_log(4)
    assert [record.step for record in folder.read_log()] == [1, 2, 3, 4]
    assert [path.name for path in folder.path.iterdir()] == ["log.jsonl"]


def test_a_damaged_line_in_the_middle_is_named(folder):
    for step in (1, 2, 3):
        folder.append_log(a_record(step))
    lines = folder.log.read_text().splitlines(keepends=True)
    folder.log.write_text(lines[0] + "garbage\n" + lines[2])
    with pytest.raises(VlmtuneError, match=r"log.jsonl:2 is not a log record"):
        folder.read_log()


def test_versions_come_from_metadata(monkeypatch):
    import importlib.metadata

    def version(name):
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        return f"{name}-version"

    monkeypatch.setattr(importlib.metadata, "version", version)
    versions = library_versions()
    assert versions["torch"] == "torch-version"
    assert versions["peft"] == "not installed"
    assert list(versions)[:2] == ["python", "vlmtune"]


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


def test_report_is_written_as_strict_json_and_as_a_page(folder):
    report = a_report(eval_loss=math.nan)
    write_report(folder, report, [a_record(step) for step in (1, 2, 3)])
    written = json.loads(folder.report_json.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert written == {**dataclasses.asdict(report), "eval_loss": None}
    page = Page(folder.report_html.read_text(encoding="utf-8"))
    for text in ("digits", "finished", "0.4000", "from 2.5000", "3 min 12 s", "6.00 GiB", "a note", "1,000 (1.00%)"):
        assert text in page.texts
    assert [tag for tag, _ in page.tags].count("svg") == 2
    assert [attributes["points"].count(",") for tag, attributes in page.tags if tag == "polyline"] == [3, 3, 3, 3]


def test_the_page_needs_nothing_from_elsewhere(folder):
    write_report(folder, a_report(), [a_record()])
    text = folder.report_html.read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|<img|url\(|@import|https?:", text)


def test_the_page_shows_what_users_wrote_as_text(folder):
    evil = '<script>alert("x")</script>'
    write_report(folder, a_report(experiment_name=evil, model=evil, skipped=[evil], notes=[evil]), [a_record()])
    page = Page(folder.report_html.read_text(encoding="utf-8"))
    assert "script" not in [tag for tag, _ in page.tags]
    assert page.texts.count(evil) >= 3


def test_a_cpu_run_without_evaluation_has_a_page(folder):
    nothing = {"gpu_memory_bytes": None, "gpu_peak_bytes": None, "gpu_limit_bytes": None, "gpu_temperature_c": None}
    report = a_report(gpu=None, peak_allocated_bytes=None, peak_reserved_bytes=None, eval_loss=None, longest_row=None)
    write_report(folder, report, [a_record(step, **nothing) for step in (1, 2)])
    page = Page(folder.report_html.read_text(encoding="utf-8"))
    assert "CPU" in page.texts and "no evaluation data" in page.texts
    assert [tag for tag, _ in page.tags].count("svg") == 1


def test_the_page_shows_memory_as_estimated_and_as_measured(folder):
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


def test_a_run_without_records_has_a_page(folder):
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
