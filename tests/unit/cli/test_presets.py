"""`vlmtune presets` as a user meets it."""

import json
from pathlib import Path

import pytest

from vlmtune.catalog.stored import stored
from vlmtune.config.load import load_config
from vlmtune.config.presets import find


def test_list_is_a_table_that_fits_80_columns(run_cli):
    result = run_cli("presets", "list")
    assert (result.code, result.stderr) == (0, "")
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    row = next(line.split() for line in result.stdout.splitlines() if line.startswith("8gb"))
    pace = f"{stored('Qwen/Qwen3-VL-4B-Instruct').peaks['8gb'].rows_per_s:.2f}"
    assert row == ["8gb", "8", "GB", "qlora", "8", "1", "512", "336", pace, "Qwen/Qwen3-VL-4B-Instruct"]
    assert "predicted for that model, all rows the largest, on a card of each size" in result.stdout


def test_list_as_json(run_cli):
    listed = json.loads(run_cli("presets", "list", "--json").stdout)
    assert [preset["preset"] for preset in listed] == ["6gb", "8gb", "12gb", "16gb", "24gb", "48gb"]
    assert listed[1] == {
        "preset": "8gb",
        "card": "8 GB (RTX 4060, RTX 3070, RTX 2080)",
        "method": "qlora",
        "rank": 8,
        "batch_size": 1,
        "max_length": 512,
        "image_size": 336,
        "suits": "Qwen/Qwen3-VL-4B-Instruct",
        "rows_per_s": stored("Qwen/Qwen3-VL-4B-Instruct").peaks["8gb"].rows_per_s,
        "rows_per_s_on": "NVIDIA GeForce RTX 4060",
    }
    assert all(preset["rows_per_s"] > 0 for preset in listed)


def test_show_prints_the_file_with_its_comments(run_cli):
    assert run_cli("presets", "show", "8gb").stdout == find("8gb").text
    assert run_cli("presets", "show", "ultra_low_memory").stdout == find("8gb").text
    shown = json.loads(run_cli("presets", "show", "8gb", "--json").stdout)
    assert shown["values"]["training"]["lora"] == {"rank": 8, "alpha": 16}


def test_show_an_unknown_preset(run_cli):
    result = run_cli("presets", "show", "9gb")
    assert (result.code, result.stdout) == (1, "")
    assert result.stderr == (
        "error: preset 9gb is unknown\nhint:  did you mean 8gb? there are 6gb, 8gb, 12gb, 16gb, 24gb, 48gb\n"
    )


def test_copy_writes_a_config_that_validates_once_there_is_data(run_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_cli("presets", "copy", "8gb", "mine.yaml")
    assert result.code == 0
    assert result.stdout == "wrote mine.yaml: change the lines marked <--, then run: vlmtune validate mine.yaml\n"
    Path("train.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    assert run_cli("validate", "mine.yaml").code == 0


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("mine.yaml", "mine"),
        ("Mine 2.run.yml", "Mine-2.run"),
        ("1e5.yaml", "1e5"),
        ("2024.yaml", "2024"),
        ("true.yaml", "true"),
        (".hidden", "hidden"),
        ("größe-.yaml", "gr-e"),
        ("日本.yaml", "run"),
        (f"{'x' * 99}-y.yaml", "x" * 99),
    ],
)
def test_the_run_of_a_copy_has_the_name_of_its_file(run_cli, tmp_path, monkeypatch, file, name):
    monkeypatch.chdir(tmp_path)
    assert run_cli("presets", "copy", "8gb", file).code == 0
    assert load_config(Path(file)).config.run_dir == Path("runs") / name


def test_copy_never_overwrites_by_accident(run_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("precious")
    result = run_cli("presets", "copy", "8gb", "mine.yaml")
    assert result.code == 1
    assert result.stderr == (
        "error: mine.yaml exists already\nhint:  give another name, or overwrite it with --force\n"
    )
    assert Path("mine.yaml").read_text() == "precious"
    assert run_cli("presets", "copy", "9gb", "mine.yaml", "--force").code == 1
    assert Path("mine.yaml").read_text() == "precious"
    assert run_cli("presets", "copy", "8gb", "mine.yaml", "--force").code == 0
    assert "preset 8gb" in Path("mine.yaml").read_text()


def test_copy_into_a_folder_that_is_not_there(run_cli, tmp_path):
    result = run_cli("presets", "copy", "8gb", tmp_path / "none" / "mine.yaml")
    assert result.code == 1
    assert "cannot be written: No such file or directory" in result.stderr
