"""`vlmtune validate` as a user meets it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = "experiment_name: cats\nmodel: {name: some/model}\ndata:\n  train_path: rows.jsonl\n"
ROW = '{"question": "Which animal?", "answer": "a cat"}\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a config and one row of text."""
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(CONFIG)
    Path("rows.jsonl").write_text(ROW)
    return tmp_path


def row_of(output: str, key: str) -> list[str]:
    """The cells of the table row that starts with `key`."""
    return next(line.split() for line in output.splitlines() if line.split()[:1] == [key])


def test_prints_every_value_with_its_source_and_counts_the_rows(folder, run_cli):
    result = run_cli("validate", "run.yaml", "--set", "preset=8gb", "--set", "training.lora.rank=4")
    assert (result.code, result.stderr) == (0, "")
    assert row_of(result.stdout, "experiment_name") == ["experiment_name", "cats", "run.yaml:1"]
    assert row_of(result.stdout, "rank") == ["rank", "4", "--set"]
    assert row_of(result.stdout, "alpha") == ["alpha", "16", "preset", "8gb"]
    assert row_of(result.stdout, "seed") == ["seed", "42", "default"]
    assert row_of(result.stdout, "gradient_checkpointing")[1] == "true"
    assert row_of(result.stdout, "data.train_path") == ["data.train_path", "1", "0", "0"]


def test_json_is_the_whole_story_and_nothing_else(folder, run_cli):
    result = run_cli("validate", "run.yaml", "--json")
    report = json.loads(result.stdout)
    assert result.code == 0
    assert report["config"]["model"] == {
        "name": "some/model",
        "type": None,
        "revision": None,
        "adapter": None,
        "cache_quantized": False,
    }
    assert report["sources"]["model.name"] == "run.yaml:2"
    assert report["data"]["train_path"]["rows"] == 1
    assert report["data"]["train_path"]["bad_rows"] == []


def test_bad_rows_fail_the_check_and_are_named(folder, run_cli):
    Path("rows.jsonl").write_text(ROW + '{"question": "Which animal?", "answer": ""}\n' + ROW)
    result = run_cli("validate", "run.yaml")
    assert result.code == 1
    assert result.stderr.startswith("error: data.train_path: 1 of 3 rows cannot be used\n")
    assert "rows.jsonl:2" in result.stderr
    assert row_of(result.stdout, "data.train_path") == ["data.train_path", "2", "0", "1"]

    skipped = run_cli("validate", "run.yaml", "--set", "data.on_bad_row=skip", "--json")
    assert (skipped.code, skipped.stderr) == (0, "")
    (bad,) = json.loads(skipped.stdout)["data"]["train_path"]["bad_rows"]
    assert bad["where"].endswith("rows.jsonl:2")


def test_both_data_files_are_checked_before_it_stops(folder, run_cli):
    result = run_cli("validate", "run.yaml", "--set", "data.train_path=a.jsonl", "--set", "data.val_path=b.jsonl")
    assert result.code == 1
    assert "data.train_path: data file a.jsonl does not exist" in result.stderr
    assert "data.val_path: data file b.jsonl does not exist" in result.stderr


def test_one_mistake_reads_like_the_style_sheet(folder, run_cli):
    Path("run.yaml").write_text(CONFIG + "training: {lora: {rnak: 8}}\n")
    result = run_cli("validate", "run.yaml")
    assert (result.code, result.stdout) == (1, "")
    assert result.stderr == (
        "error: training.lora.rnak is not a known key  (run.yaml:5)\nhint:  did you mean training.lora.rank?\n"
    )


def test_many_mistakes_are_numbered(folder, run_cli):
    Path("run.yaml").write_text(CONFIG + "lr: 1\nbf16: true\n")
    result = run_cli("validate", "run.yaml")
    assert result.stderr == (
        "error: 2 problems in run.yaml\n"
        "  1. lr is not a known key  (run.yaml:5)\n"
        "     hint: that is `training.learning_rate` here\n"
        "  2. bf16 is not a known key  (run.yaml:6)\n"
        "     hint: that is `hardware.mixed_precision: bf16` here\n"
    )


def test_square_brackets_in_a_value_are_text_not_markup(folder, run_cli):
    Path("run.yaml").write_text(CONFIG.replace("some/model", '"[bold]m[/bold] :smile:"'))
    assert "[bold]m[/bold] :smile:" in run_cli("validate", "run.yaml").stdout


def test_square_brackets_in_a_note_are_text_too(folder, run_cli):
    Path("rows.jsonl").write_text('{"question": "q", "answer": "a", "[red]note[/red]": 1}\n')
    assert "[red]note[/red]" in run_cli("validate", "run.yaml").stdout


def test_an_error_is_one_line_however_long(folder, run_cli):
    Path("run.yaml").write_text(CONFIG + f"training: {{{'x' * 55}: 1}}\n")
    assert run_cli("validate", "run.yaml").stderr.splitlines()[0].endswith("is not a known key  (run.yaml:5)")


def test_wrong_command_lines(folder, run_cli):
    assert run_cli("validate").code == 2
    malformed = run_cli("validate", "run.yaml", "--set", "rank")
    assert (malformed.code, malformed.stderr.splitlines()[0]) == (2, "error: --set rank is not KEY=VALUE")
    assert run_cli("validate", "run.yaml", "--nope").code == 2
    assert run_cli("nope").code == 2


def test_version_and_help(run_cli):
    from vlmtune import __version__

    assert run_cli("--version").stdout == f"vlmtune {__version__}\n"
    for command in ([], ["validate"], ["presets"], ["presets", "list"], ["presets", "show"], ["presets", "copy"]):
        result = run_cli(*command, "--help")
        assert result.code == 0
        assert "vlmtune " + " ".join(command[:1]) in result.stdout
        assert "Example: vlmtune " in result.stdout or "Start: vlmtune " in result.stdout


def test_ctrl_c_is_130_without_a_traceback(folder, run_cli, monkeypatch):
    def interrupted(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr("vlmtune.config.load.load_config", interrupted)
    result = run_cli("validate", "run.yaml")
    assert result.code == 130
    assert "Traceback" not in result.stderr


def test_a_bug_keeps_its_traceback(folder, run_cli, monkeypatch):
    def broken(*_args):
        raise ZeroDivisionError

    monkeypatch.setattr("vlmtune.config.load.load_config", broken)
    with pytest.raises(ZeroDivisionError):
        run_cli("validate", "run.yaml")


def test_a_reader_that_leaves_early_gets_no_complaint():
    command = f"{sys.executable} -m vlmtune validate --schema | true; {sys.executable} -m vlmtune presets list | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            ("data.columns={question: q}",),
            'error: data.columns: question is to be called "q", which means nothing here\n'
            "hint:  names that mean something: image, question, answer, messages …\n",
        ),
        (
            ("data.columns={frage: question}",),
            'error: data.columns: no row has a column "frage"\n'
            "hint:  write `name in the data: name here`; rows.jsonl:1 has 'question', 'answer'\n",
        ),
        (
            ("data.image_dir=gone",),
            "error: data.train_path and data.val_path: image folder gone does not exist\n"
            "hint:  correct data.image_dir\n",
        ),
        (
            ("data.train_path=no.jsonl", "data.val_path=no.jsonl"),
            "error: data.train_path and data.val_path: data file no.jsonl does not exist\n"
            "hint:  did you mean rows.jsonl or val.jsonl?\n",
        ),
    ],
)
def test_a_fault_that_both_data_files_meet_is_said_once(changes, said, folder, run_cli):
    Path("val.jsonl").write_text(ROW)
    words = [word for change in ("data.val_path=val.jsonl", *changes) for word in ("--set", change)]
    refused = run_cli("validate", "run.yaml", *words)
    assert (refused.code, refused.stderr) == (1, said)


def test_a_column_that_the_held_out_rows_alone_lack_is_told_with_those_they_have(folder, run_cli):
    Path("rows.jsonl").write_text('{"frage": "Which animal?", "answer": "a cat"}\n')
    Path("val.jsonl").write_text("\n" + ROW)
    words = ("--set", "data.val_path=val.jsonl", "--set", "data.columns={frage: question}")
    refused = run_cli("validate", "run.yaml", *words)
    assert refused.stderr.startswith('error: data.columns: no row has a column "frage"\n')
    assert refused.stderr.count("error") == 1 and "val.jsonl:2 has 'question', 'answer'" in refused.stderr
