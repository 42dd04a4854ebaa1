"""Every file of a run × every damage × every command that reads it: the same result, or one error that names the file.

The suite takes a sample, `make damage` all of it.
"""

import contextlib
import io
import os
import random
import shutil
from itertools import product
from pathlib import Path
from traceback import format_exc
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from vlmtune.cli import main
from vlmtune.engine import trainer
from vlmtune.runs.folder import COMPLETE
from vlmtune.runs.records import Retry

from .test_damage import COMMANDS, DAMAGES, OF_A_CHECKPOINT, SETTINGS
from .test_resume import Killed, interrupt_at

OF_A_RUN = ("config.yaml", "plan.json", "versions.json", "log.jsonl", "retries.json", "estimate.json")
AFTER_A_KILL = ("running.json", "train.lock")
AT_ITS_END = (
    *("report.json", "report.html"),
    *(f"adapter/{name}" for name in ("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja")),
    *(f"adapter/{name}" for name in ("manifest.json", "processor_config.json", "tokenizer.json")),
    "adapter/tokenizer_config.json",
)
CARD = "adapter/README.md"
"""For people, who may edit it: nothing reads it."""
CHECKPOINTS = tuple(
    f"checkpoints/checkpoint-{step}/{name}" for step in (2, 4) for name in ("COMPLETE", *OF_A_CHECKPOINT)
)
STOPPED = (*OF_A_RUN, *AFTER_A_KILL, *CHECKPOINTS)
DONE = (*OF_A_RUN, *AT_ITS_END)
RESUME = ("train", "run.yaml", "--resume", *(word for one in SETTINGS for word in ("--set", one)))


class Case(NamedTuple):
    """One damaged file, and what is asked of the run."""

    state: str
    file: str
    damage: str
    command: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.command[0]} of a {self.state} run, {self.file}: {self.damage}"


ALL = [
    Case(state, file, damage, command)
    for state, files in (("stopped", STOPPED), ("done", DONE))
    for file, damage, command in product(files, DAMAGES, (RESUME, *COMMANDS))
]
NUM_CASES = int(os.environ.get("VLMTUNE_DAMAGES", "6"))


def call(words: tuple[str, ...]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([*words])
    return ended.value.code or 0, out.getvalue(), err.getvalue()


@pytest.fixture
def states(project, monkeypatch) -> Path:
    """A folder with a run that was killed after its fourth step, and one that has ended."""
    text = project.config.read_text() + "experiment_name: run\n"
    project.config.write_text(text)
    with monkeypatch.context() as patch:
        interrupt_at(patch, trainer, "forward_loss", 10)
        with pytest.raises(Killed):
            project.train("run", *SETTINGS)
    folder = project.run("run")
    folder.add_retry(Retry(("hardware.num_workers=0",), "one worker less"))
    folder.write_estimate({"peak_reserved_bytes": 10, "peak_allocated_bytes": 9, "parts": []})
    for name in AFTER_A_KILL:
        (folder.path / name).write_text('{"process": 1, "host": "here"}')
    shutil.copytree(folder.path, project.root / "stopped")
    assert call(RESUME)[0] == 0
    folder.write_estimate({"peak_reserved_bytes": 10, "peak_allocated_bytes": 9, "parts": []})
    shutil.copytree(folder.path, project.root / "done")
    return project.root


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_damage_to_any_file_is_no_traceback_and_no_silent_difference(states):
    assert files_of(states / "stopped") == set(STOPPED)
    assert {name for name in files_of(states / "done") if not name.startswith("checkpoints")} == {*DONE, CARD}
    tried = random.Random(1).sample(ALL, min(NUM_CASES, len(ALL)))
    expected = {
        key: what_comes_of(states, Case(*key[:1], "", "", key[1])) for key in {(c.state, c.command) for c in tried}
    }
    wrong = []
    for case in tried:
        try:
            problem = problem_of(case, what_comes_of(states, case), expected[case.state, case.command])
        except Exception:  # all of the table is wanted, not what comes before the first bug
            problem = format_exc()
        if problem:
            wrong.append(f"{case}: {problem}")
    assert not wrong, "\n".join(wrong)


def what_comes_of(root: Path, case: Case) -> tuple:
    run = root / "runs" / "run"
    shutil.rmtree(run)
    shutil.rmtree(root / "merged", ignore_errors=True)
    shutil.copytree(root / case.state, run)
    if case.file:
        DAMAGES[case.damage](run / case.file)
    code, out, err = call(case.command)
    made = {"train": run / "adapter" / "adapter_model.safetensors", "merge": root / "merged" / "model.safetensors"}
    weights = load_file(made[case.command[0]]) if code == 0 and case.command[0] in made else {}
    return code, out, err, weights


def problem_of(case: Case, found: tuple, expected: tuple) -> str | None:
    code, out, err, weights = found
    name = Path(case.file).name
    if code == 1:
        named = name in err or Path(case.file).parent.name in err
        return None if err.startswith("error: ") and "hint:" in err and named else f"said {err!r}"
    if code != 0:
        return f"exit code {code}, {err!r}"
    if name == COMPLETE and err == expected[2].replace("checkpoint-4", "checkpoint-2") != expected[2]:
        return None  # as one that was never completed; which is used instead is told
    if case.command is not RESUME and out != expected[1]:
        return f"answered otherwise: {out!r} {err!r}"
    if weights.keys() != expected[3].keys() or any(not torch.equal(weights[key], expected[3][key]) for key in weights):
        return f"other weights: {out!r}"
    return None
