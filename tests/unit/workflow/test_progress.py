"""Long work is shown on a terminal, and on a terminal only."""

import io
import json
import re
import sys

import pytest
from rich.console import Console

from vlmtune.data import samples
from vlmtune.data.progress import silent
from vlmtune.data.table import looks, make
from vlmtune.workflow import progress as module
from vlmtune.workflow.progress import bar, progress


@pytest.fixture
def terminal(monkeypatch) -> io.StringIO:
    """What is written to a terminal that stands for standard error."""
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=80, color_system=None, _environ={})
    monkeypatch.setattr(module, "standard_error", lambda live: console)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    return written


def test_a_bar_is_for_terminals_and_for_those_who_want_it(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert progress(live=True) is silent
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert progress(live=True) is bar and progress(live=False) is silent


def test_short_work_shows_nothing(terminal):
    with bar("reading rows.jsonl", 10) as advance:
        advance(10)
    assert terminal.getvalue() == ""


def test_long_work_shows_how_far_it_is_and_is_gone_afterwards(terminal, monkeypatch):
    monkeypatch.setattr(module, "SHOWN_AFTER_S", 0.0)
    with bar("reading rows.jsonl", 200) as advance:
        advance(50)
        advance(50)
    assert re.search(r"reading rows\.jsonl .* 50%", terminal.getvalue())
    assert terminal.getvalue().endswith("\x1b[2K"), "the line is wiped"


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A config whose data file counts as large."""
    for part in (make, looks):
        monkeypatch.setattr(part, "each", lambda work, tasks: map(work, tasks))
    monkeypatch.setattr(samples, "LARGE_BYTES", 0)
    monkeypatch.setattr(module, "SHOWN_AFTER_S", 0.0)
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "question": "q", "answer": "a"}\n' * 9)
    (tmp_path / "run.yaml").write_text("model: {name: m}\ndata: {train_path: rows.jsonl}\n")
    return tmp_path / "run.yaml"


def test_reading_and_looking_are_shown(config, terminal, run_cli, monkeypatch):
    real = module.progress
    monkeypatch.setattr("vlmtune.workflow.rows.progress", lambda live: bar if live else real(live))
    run_cli("validate", config)
    assert "reading rows.jsonl" in terminal.getvalue() and "looking at pictures" in terminal.getvalue()


def test_nothing_is_shown_to_programs(config, terminal, run_cli, monkeypatch):
    monkeypatch.setattr("vlmtune.workflow.rows.progress", lambda live: bar if live else silent)
    result = run_cli("validate", config, "--json")
    assert terminal.getvalue() == ""
    assert len(json.loads(result.stdout)["data"]["train_path"]["bad_rows"]) == 9
