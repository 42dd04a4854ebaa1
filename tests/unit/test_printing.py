"""What would move the cursor, colour, or turn text round is shown as an escape, wherever it comes from."""

import io
import json
import logging
import sys
import warnings

import pytest
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from vlmtune.cli.show import render
from vlmtune.console import SafeConsole
from vlmtune.engine.monitor import LiveView, RunConsole
from vlmtune.errors import VlmtuneError
from vlmtune.files import strict_json
from vlmtune.printing import printable, printable_json, say, say_json

HOSTILE = "\x1b]0;t\x07 \x1b[2J \x9b31m \x00\x7f\r \u202egnp.exe \u2066x\u2069 \u2028 \u200b\ufeff \udc80 \U000e0041"
UNSAFE = set(HOSTILE) - set(" ]0;t[2J31mgnp.exe")


def is_safe(text: str) -> bool:
    return not UNSAFE & set(text)


def test_what_does_something_to_a_terminal_is_written_out():
    assert printable("a\x1b[31m\x9bb\u202e\u2069\udc80\U000e0041") == r"a\x1b[31m\x9bb\u202e\u2069\udc80\U000e0041"
    assert is_safe(printable(HOSTILE)) and len(UNSAFE) == 14


def test_letters_of_every_script_stay():
    text = "Ünï\tcode\n日本語 עברית العربية नमस्\u200dते 👩\u200d🔬 ✓ »«"
    assert printable(text) == text


def test_json_means_the_same():
    value = {HOSTILE: [HOSTILE, "日本"]}
    for text in (printable_json(json.dumps(value, ensure_ascii=False, indent=1)), strict_json(value)):
        assert is_safe(text) and json.loads(text) == value and "日本" in text


def test_lines_and_json_go_to_the_terminal_so(capsys):
    say(HOSTILE)
    say(HOSTILE, err=True)
    say_json(json.dumps([HOSTILE], ensure_ascii=False))
    out, err = capsys.readouterr()
    assert is_safe(out) and is_safe(err) and json.loads(out.splitlines()[-1]) == [HOSTILE]


def test_json_is_whole_where_standard_output_takes_ascii(monkeypatch):
    written = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
    monkeypatch.setattr(sys, "stdout", written)
    say_json('"日本 😀"')
    assert json.loads(written.buffer.getvalue()) == "日本 😀"


def in_a_table(text: str) -> Table:
    table = Table(text)
    table.add_row(text, style="red")
    return table


@pytest.mark.parametrize("made", [str, Text, in_a_table, lambda text: Panel(text, title=text)])
def test_a_console_writes_its_own_escapes_and_no_others(made):
    out = io.StringIO()
    SafeConsole(file=out, force_terminal=True, color_system="standard", width=300).print(made(HOSTILE), style="bold")
    text = out.getvalue()
    for own in ("\x1b[1m", "\x1b[31m", "\x1b[1;31m", "\x1b[0m"):
        text = text.replace(own, "")
    assert is_safe(text) and r"\x1b[2J" in text


def test_errors_and_the_live_view_are_such_consoles(capsys, monkeypatch):
    hint = VlmtuneError(HOSTILE, HOSTILE)
    render.print_error(VlmtuneError(HOSTILE, HOSTILE, problems=(hint, hint)))
    render.console().print(HOSTILE)
    render.print_json({HOSTILE: HOSTILE})
    with LiveView(HOSTILE, RunConsole()) as view:
        view.note(HOSTILE)
        view.warn(HOSTILE)
    out, err = capsys.readouterr()
    assert is_safe(out) and is_safe(err) and r"\u202egnp" in err


def test_a_name_with_a_line_end_is_no_message_of_its_own(capsys):
    render.print_error(VlmtuneError("no file a\nerror: run this", "give\nhint: that", problems=()))
    assert capsys.readouterr().err == "error: no file a error: run this\nhint:  give hint: that\n"


def test_what_libraries_log_and_warn_of_is_written_out_once_a_command_has_begun(run_cli, capsys, monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    before = logging.getLogRecordFactory()
    try:
        run_cli("--version")
        handler, logger = logging.StreamHandler(sys.stderr), logging.getLogger("library")
        logger.addHandler(handler)
        logger.warning("no file %s", "\x1b[2J")
        logger.removeHandler(handler)
        sys.stderr.write(warnings.formatwarning("column \u202e", UserWarning, "m.py", 1))
        assert capsys.readouterr().err == "no file \\x1b[2J\nm.py:1: UserWarning: column \\u202e\n"
    finally:
        logging.setLogRecordFactory(before)
