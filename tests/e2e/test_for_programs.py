"""With `--json` nothing moves on the terminal, whatever takes long: a program waits for the answer."""

import json
import sys
from dataclasses import dataclass

import pytest

from vlmtune.data import samples
from vlmtune.data.table import looks, make
from vlmtune.estimate.search import explain, fit
from vlmtune.guide import numbers, text
from vlmtune.hardware import at_hand
from vlmtune.hardware.calibration import Calibration, Figures, Setup, ShortRun
from vlmtune.workflow import calibrate as measuring
from vlmtune.workflow import progress

ESC = "\x1b"
CALIBRATION = Calibration(Setup("card", "a", "1", "2"), Figures(None, ((), ())), ShortRun(1, 1, 1, 1))


@dataclass
class Guide:
    """Stands for one whose making takes minutes."""


@pytest.fixture
def long_work(monkeypatch):
    """Every data file counts as large and all work as long; there is a card."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(samples, "LARGE_BYTES", 0)
    monkeypatch.setattr(progress, "SHOWN_AFTER_S", 0.0)
    for part in (make, looks):
        monkeypatch.setattr(part, "each", lambda work, tasks: map(work, tasks))
    every_change = explain._every_change
    monkeypatch.setattr(explain, "_every_change", lambda *of: every_change(*of)[:1])
    monkeypatch.setattr(at_hand, "require_card", lambda: None)
    monkeypatch.setattr(measuring, "calibrate", lambda say: say("measuring") or CALIBRATION)
    monkeypatch.setattr(numbers, "make_guide", lambda model, preset, target, say: say("a knob") or Guide())
    monkeypatch.setattr(text, "guide_markdown", lambda made, budget_from: "# Guide")


@pytest.fixture
def shown(project, long_work, run_cli, monkeypatch, tmp_path_factory):
    """A function that returns what a command shows on a terminal; nothing is kept from the one before."""

    def show(*words: object) -> str:
        progress.standard_error.cache_clear()
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        done = run_cli(*words)
        assert done.code == 0, done.stderr
        if "--json" in words:
            json.loads(done.stdout)
        return done.stderr

    yield show
    progress.standard_error.cache_clear()


@pytest.mark.parametrize(
    ("words", "bars"),
    [
        (["validate", "run.yaml"], ["reading rows.jsonl", "looking at pictures"]),
        (["estimate-vram", "run.yaml", "--gpu", "8gb", "--fast", "--explain"], ["measuring rows", "simulating"]),
        (["calibrate"], ["measuring…"]),
        (["guide", "--gpu", "8gb"], ["simulating training step 1: a knob"]),
    ],
)
def test_what_takes_long_is_shown_to_people_and_not_to_programs(words, bars, shown):
    assert shown(*words, "--json") == ""
    on_terminal = shown(*words)
    assert ESC in on_terminal and all(bar in on_terminal for bar in bars)


def test_plan(project, shown, monkeypatch, llava):
    monkeypatch.setattr(fit, "fit_card", lambda scenario: _kept(scenario))
    words = ["plan", "--model", llava, "--gpu", "8gb", "--data", "rows.jsonl"]
    assert shown(*words, "--json") == ""
    on_terminal = shown(*words)
    assert "looking at pictures" in on_terminal and "measuring rows" in on_terminal


def _kept(scenario) -> fit.Fit:
    report = scenario.estimate(fast=True)
    return fit.Fit((), (), report, True, report, 1)


def test_evaluate(project, shown):
    assert project.train("run", "training.max_steps=1").code == 0
    words = ["evaluate", "runs/run", "--data", "rows.jsonl", "--max-new-tokens", "1"]
    assert shown(*words, "--json") == ""
    on_terminal = shown(*words)
    assert "evaluation loss" in on_terminal and "answers" in on_terminal
