"""The README's start block runs as written, from top to bottom, with the demo's model in the large one's place."""

import json
import re
import shlex
import shutil
from itertools import islice
from pathlib import Path

import pytest

import vlmtune
from vlmtune.demo.digits import write_digits

ROOT = Path(__file__).parents[2]
VLMTUNE = ".venv/bin/vlmtune"
ROWS = {"train.jsonl": 64, "heldout.jsonl": 4}


def start_block() -> list[list[str]]:
    """The commands of the first block under Start."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^## Start$.*?^```$\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)[1]
    lines = block.replace("\\\n", "").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    assert all(command[0] == VLMTUNE for command in words if command)
    return [command[1:] for command in words if command]


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
        "doctor", "models", "plan", "validate", "estimate-vram", "train", "evaluate", "generate", "merge",
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
