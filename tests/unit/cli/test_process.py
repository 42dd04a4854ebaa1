"""How the process of a command ends."""

import subprocess
import sys

import pytest

START = """
import atexit, sys
import vlmtune.__main__ as process

class Left:
    def __del__(self):
        print("taken apart")

left = Left()

def main():
    atexit.register(lambda: print("a library's own end"))
    print("the answer")
    {ending}

process.main = main
process.command()
"""


def ended_with(ending: str) -> subprocess.CompletedProcess:
    code = START.format(ending=ending)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_libraries_end_but_objects_are_not_taken_apart():
    done = ended_with("sys.exit(3)")
    assert (done.returncode, done.stdout, done.stderr) == (3, "the answer\na library's own end\n", "")


def test_a_bug_is_still_a_traceback_and_an_error():
    done = ended_with("raise RuntimeError('a bug')")
    assert (done.returncode, done.stdout) == (1, "the answer\na library's own end\n")
    assert "RuntimeError: a bug" in done.stderr


@pytest.mark.parametrize("name", ["b\x1b[2J.yaml", "--\x9b2J", "\x1b]0;x\x07"])
def test_an_argument_with_control_characters_is_shown_escaped(run_cli, name):
    refused = run_cli("validate", "a.yaml", name)
    assert refused.code == 2 and not {"\x1b", "\x9b", "\x07"} & set(refused.stderr)
    assert refused.stderr.startswith("error: an argument holds a control character: ")
