"""The run folder: which one opens, and what is written into it comes back."""

import json
import math
import os

import pytest

from vlmtune.errors import VlmtuneError
from vlmtune.runs.folder import RunFolder
from vlmtune.runs.memory import Memory, Pace, parts_of_peak
from vlmtune.runs.records import Retry


def test_a_new_run_folder_takes_no_others_place(tmp_path, folder):
    assert RunFolder.create(folder.path) == folder, "an empty folder may be used"
    folder.config.write_text("x")
    with pytest.raises(VlmtuneError, match="holds no run that can be continued: it has no plan.json"):
        RunFolder.create(folder.path)
    folder.plan.write_text("{}")
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


@pytest.mark.parametrize("name", ["plan.json", "log.jsonl", "report.html", "train.lock", "adapter", "checkpoints"])
def test_a_link_or_pipe_in_the_place_of_a_file_of_the_run_is_refused(tmp_path, folder, name):
    folder.plan.write_text("{}")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for make, kind in ((lambda path: path.symlink_to(elsewhere), "a symbolic link"), (os.mkfifo, "a pipe")):
        (folder.path / name).unlink(missing_ok=True)
        make(folder.path / name)
        for open_ in (RunFolder.create, RunFolder.open_existing):
            with pytest.raises(VlmtuneError, match=rf"^{folder.path / name} is {kind}, not a (regular file|folder)"):
                open_(folder.path)
    assert os.listdir(elsewhere) == []


def test_a_folder_in_the_place_of_a_file_is_refused_and_a_file_in_that_of_a_folder(folder):
    folder.plan.mkdir()
    with pytest.raises(VlmtuneError, match=r"plan\.json is a folder, not a regular file"):
        RunFolder.open_existing(folder.path)
    folder.plan.rmdir()
    folder.adapter.write_text("x")
    with pytest.raises(VlmtuneError, match="adapter is a regular file, not a folder"):
        RunFolder.open_existing(folder.path)


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


def test_log_returns_what_was_appended(folder, a_record):
    records = [a_record(1), a_record(2, grad_norm=None, gpu_memory_bytes=None, eval_loss=0.25)]
    assert folder.read_log() == []
    for record in records:
        folder.append_log(record)
    assert folder.read_log() == records


def test_log_holds_null_for_nan_and_reads_it_back(folder, a_record):
    folder.append_log(a_record(loss=math.nan, grad_norm=math.inf))
    line = json.loads(folder.log.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert line["loss"] is None and line["grad_norm"] is None
    (record,) = folder.read_log()
    assert math.isnan(record.loss) and record.grad_norm is None


@pytest.mark.parametrize("lost", (1, 2, 60, 150))
def test_a_cut_last_line_is_left_out_and_repaired(folder, lost, a_record):
    for step in (1, 2, 3):
        folder.append_log(a_record(step))
    folder.log.write_bytes(folder.log.read_bytes()[: -1 - lost])
    assert [record.step for record in folder.read_log()] == [1, 2]
    folder.truncate_log(2)
    folder.append_log(a_record(3))
    assert [record.step for record in folder.read_log()] == [1, 2, 3]


def test_truncating_the_log_drops_the_steps_after_the_checkpoint(folder, a_record):
    for step in range(1, 8):
        folder.append_log(a_record(step))
    folder.truncate_log(4)
    assert [record.step for record in folder.read_log()] == [1, 2, 3, 4]
    assert [path.name for path in folder.path.iterdir()] == ["log.jsonl"]


def test_a_damaged_line_in_the_middle_is_named(folder, a_record):
    for step in (1, 2, 3):
        folder.append_log(a_record(step))
    lines = folder.log.read_text().splitlines(keepends=True)
    folder.log.write_text(lines[0] + "garbage\n" + lines[2])
    with pytest.raises(VlmtuneError, match=r"log.jsonl:2 is not a log record"):
        folder.read_log()


def test_the_run_folder_keeps_the_estimate(folder):
    assert folder.read_estimate() is None
    memory = {"peak_reserved_bytes": 10, "peak_allocated_bytes": 9, "parts": parts_of_peak(5, 6, 9)}
    folder.write_estimate(memory | {"gpu": "8gb"})
    assert folder.read_estimate() == Memory(**memory)
    folder.write_estimate(memory | {"time": {"step_s": 2.5, "rows_per_s": 3.0}})
    assert folder.read_estimate().time == Pace(2.5)
    folder.write_estimate(None)
    folder.write_estimate(None)
    assert folder.read_estimate() is None


def test_the_run_folder_keeps_its_retries_in_their_order(folder):
    retries = [Retry(("a=1", "b=2"), "one"), Retry(("c=3",), "two")]
    assert folder.read_retries() == []
    for retry in retries:
        folder.add_retry(retry)
    assert folder.read_retries() == retries


def test_what_a_kill_left_of_the_first_file_takes_no_place(folder):
    (folder.path / "plan.json.7.partial").write_text("{")
    assert RunFolder.create(folder.path) == folder


def test_keys_of_later_versions_are_left_out(folder, a_record):
    folder.append_log(a_record())
    folder.log.write_text(folder.log.read_text().replace("{", '{"new": [1], ', 1))
    assert folder.read_log() == [a_record()]
    folder.retries.write_text('[{"words": ["a=1"], "note": "one", "new": null}]')
    assert folder.read_retries() == [Retry(("a=1",), "one")]


@pytest.mark.parametrize(("key", "value"), [("step", '"1"'), ("step", "1.5"), ("loss", '"nan"'), ("elapsed_s", "null")])
def test_a_value_of_another_type_is_no_record(folder, a_record, key, value):
    for step in (1, 2):
        folder.append_log(a_record(step))
    lines = folder.log.read_text().splitlines()
    before = f'"{key}": {json.dumps(json.loads(lines[0])[key])}'
    folder.log.write_text(lines[0].replace(before, f'"{key}": {value}') + "\n" + lines[1] + "\n")
    with pytest.raises(VlmtuneError, match=r"log.jsonl:1 is not a log record"):
        folder.read_log()


@pytest.mark.parametrize("text", ["", "[", "{}", '[{"words": "a=1", "note": "one"}]', '{"peak_reserved_bytes": 1.5}'])
def test_a_damaged_file_is_named(folder, text):
    folder.retries.write_text(text)
    with pytest.raises(VlmtuneError, match=r"retries.json is damaged"):
        folder.read_retries()
    folder.estimate.write_text(text)
    with pytest.raises(VlmtuneError, match=r"estimate.json is damaged"):
        folder.read_estimate()


def test_how_a_run_ended_is_read_of_any_report(folder):
    assert folder.read_outcome() is None
    for text in ("", '{"status": "fini', '{"status": "finished"}', "[]"):
        folder.report_json.write_text(text)
        assert folder.read_outcome() is None
    for status, is_finished in (("finished", True), ("interrupted", False)):
        folder.report_json.write_text(json.dumps({"status": status, "steps": 7, "of a later version": {}}))
        assert folder.read_outcome().steps == 7 and folder.read_outcome().is_finished is is_finished
