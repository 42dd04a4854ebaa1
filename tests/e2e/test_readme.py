"""The README's start block runs as written, from top to bottom, with the demo's model in the large one's place."""

import importlib.util
import json
import shlex
import shutil
from functools import cache
from itertools import islice
from pathlib import Path

import pytest

import vlmtune
from vlmtune.demo.digits import write_digits

ROOT = Path(__file__).parents[2]
VLMTUNE = ".venv/bin/vlmtune"
ROWS = {"train.jsonl": 64, "heldout.jsonl": 4}
COMMANDS = {
    "doctor",
    "estimate-vram",
    "evaluate",
    "generate",
    "merge",
    "models",
    "plan",
    "presets",
    "train",
    "validate",
}


@cache
def walk():
    """The module that runs every command of the page."""
    spec = importlib.util.spec_from_file_location("walk", ROOT / "docs" / "walk.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start_block() -> list[list[str]]:
    """The commands of the first block under Start."""
    return [shlex.split(command)[1:] for command in walk().commands(walk().readme()) if command.startswith(VLMTUNE)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What `make demo` leaves, with fewer rows, and a folder where the block looks for a hub model."""
    write_digits(tmp_path / "demo-data")
    for name, number in ROWS.items():
        file = tmp_path / "demo-data" / name
        with file.open(encoding="utf-8") as lines:
            kept = list(islice(lines, number))
        file.write_text("".join(kept), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_start_block_runs_as_it_is_written(folder, run_cli):
    commands = start_block()
    assert [command[0] for command in commands] == [
        "doctor", "models", "plan", "validate", "estimate-vram", "train", "evaluate", "generate", "merge", "generate",
    ]  # fmt: skip
    model = commands[2][commands[2].index("--model") + 1]
    shutil.copytree(Path(vlmtune.__file__).parent / "demo" / "model", folder / model)
    for command in commands:
        done = run_cli(*command)
        assert done.code == 0, f"{' '.join(command)}: {done.stderr}"
    run = folder / commands[6][1]
    assert json.loads((run / "report.json").read_text(encoding="utf-8"))["status"] == "finished"
    assert "rows             4\n" in run_cli(*commands[6]).stdout
    assert (folder / "my-model" / "model.safetensors").is_file()


def test_the_walk_leaves_nothing_of_the_page_out():
    found = list(walk().commands(walk().readme()))
    assert found[:2] == ["make demo", "make test"]
    known = {*walk().SLOW, *walk().WITHOUT, *walk().MENTIONED, walk().ITSELF}
    assert known <= set(found), "what is left out is on the page"
    is_run = [command for command in found if walk().why_not(command, slow=True) is None]
    assert [walk().as_run(command).split()[0] for command in is_run if not command.startswith("make")] == (
        [VLMTUNE] * 12
    )
    assert walk().ITSELF not in is_run
    for command in is_run:
        if not command.startswith("make"):
            assert shlex.split(walk().as_run(command))[1] in COMMANDS, command
        else:
            assert f"\n{command.removeprefix('make ')}:" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("page", "found"),
    [
        ("```\nmake demo    # installs\n\n# alone\nvlmtune a \\\n    --b # c\n```\n", ["make demo", "vlmtune a --b"]),
        ("Say `vlmtune show X` or `make it`, not `make` or `other vlmtune`.", ["vlmtune show X", "make it"]),
        ("`make it`\n```\nmake it\nmake that\n```\n", ["make it", "make that"]),
    ],
)
def test_commands_are_found_in_blocks_and_in_sentences_once(page, found):
    assert list(walk().commands(page)) == found


def test_no_command_that_needs_a_gpu_is_tried_without_one():
    measuring = [command for command in walk().commands(walk().readme()) if command.startswith("make gpu")]
    needs_gpu = {command: walk().why_not(command, slow=True) for command in measuring}
    assert len(needs_gpu) >= 6
    assert [command for command, reason in needs_gpu.items() if reason is None] == [
        "make gpu-errors",
        "make gpu-time-errors",
    ]
