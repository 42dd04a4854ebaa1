"""The disk is full at any one call of a run that writes: one error, and the run goes on to the same weights.

The suite takes a few calls, `make full-disk` each of them, twice: full for that call alone, and from there on.
"""

import multiprocessing
import os
import random
import re
import shutil
import sys
from itertools import product

from failing_disk import FailingDisk

from .test_resume import log_of

NUM_TRIED = int(os.environ.get("VLMTUNE_WRITES", "3"))
EVALUATED = ("data.val_path=rows.jsonl", "training.eval_steps=3", "training.max_steps=6")


class Disturbed:
    """A run in a process of its own, forked from this one, whose disk fails at a call."""

    def __init__(self, project, fails_at: int | None, lasting: bool) -> None:
        self.project, self.disk = project, FailingDisk(project.root / "runs", fails_at, lasting)
        forked = multiprocessing.get_context("fork")
        self.counted = forked.Value("i")
        process = forked.Process(target=self._run)
        process.start()
        process.join(60)
        process.kill()
        self.code, self.calls = process.exitcode, self.counted.value
        self.said = (project.root / "said").read_text()

    def _run(self) -> None:
        self.disk.begin()
        said = "a traceback"
        try:
            result = self.project.train("full", *EVALUATED)
            said = result.stderr
        finally:
            self.counted.value = self.disk.calls
            (self.project.root / "said").write_text(said)
        sys.exit(result.code)


def problem_of(project, run: Disturbed) -> str | None:
    """What is wrong with how it ended, or None."""
    if run.code not in (0, 1):
        return f"exit code {run.code}"
    lines = run.said.splitlines()
    is_told = lines and lines[0].startswith("error: ") and re.search("the disk is full|No space left", lines[0])
    if run.code == 1 and not (is_told and "\nhint:  " in run.said):
        return f"said {run.said!r}"
    if list(project.root.glob("runs/**/*.partial")):
        return "left half a file"
    return None


def test_the_disk_is_full_at_any_call(project, weights):
    assert project.train("straight", *EVALUATED).code == 0
    expected, log = weights(project.run("straight")), log_of(project.run("straight"))
    whole = Disturbed(project, None, False)
    assert whole.code == 0 and whole.calls >= 50
    every = list(product(range(1, whole.calls + 1), (False, True)))
    tried = [(4, True), *random.Random(1).sample(every, min(NUM_TRIED - 1, len(every)))]
    wrong = []
    for fails_at, lasting in tried:
        shutil.rmtree(project.run("full").path, ignore_errors=True)
        run = Disturbed(project, fails_at, lasting)
        problem = problem_of(project, run)
        kept = project.run("full").latest_checkpoint()
        ended = project.train("full", *EVALUATED, flags=("--resume", "auto"))
        found = weights(project.run("full")) if ended.code == 0 else {}
        if ended.code or log_of(project.run("full")) != log or not same(found, expected):
            problem = f"{problem}; it does not go on as if nothing had been: {ended.stderr}"
        elif kept and f"continuing from {kept.name}" not in ended.stdout and "is finished" not in ended.stdout:
            problem = f"{problem}; {kept.name} was not used: {ended.stdout}"
        if problem:
            wrong.append(
                f"full {'from' if lasting else 'at'} call {fails_at} of {whole.calls} {'on' * lasting}: {problem}"
            )
    assert not wrong, "\n".join(wrong)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
