"""Files are read and text is shown in one place each: what others made goes through its bounds and its escapes."""

import ast
from pathlib import Path

import pytest

import vlmtune

PACKAGE = Path(vlmtune.__file__).parent
OWN_FILES = {
    "catalog/__init__.py": "the package's own",
    "catalog/stored.py": "the package's own",
    "config/presets.py": "the package's own",
    "hardware/cards.py": "the package's own",
    "hardware/main_memory.py": "the system's",
    "files.py": "the package's own, and digests",
    "data/table/make.py": "in the user's cache",
    "data/table/rows.py": "in the user's cache",
    "estimate/cache.py": "in the user's cache",
    "hardware/calibration.py": "in the user's cache",
    "hub/download.py": "in the hub's cache",
    "models/kept.py": "in the user's cache",
    "models/opened/limited.py": "the system's",
}
"""Modules that read files which nobody names, and whose they are."""
READERS = {"read_text", "read_bytes"}


def scan(tree: ast.AST, name: str):
    """Yield what a module reads or prints past `reading.py`, `printing.py` and `console.py`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        last = called.rpartition(".")[2]
        if name not in OWN_FILES and (last in READERS and not node.args or last == "open" and opens_to_read(node)):
            yield f"{called} reads a file: reading.read_regular"
        if called in ("typer.echo", "print", "sys.stdout.write", "Console"):
            yield f"{called} shows text: printing.say or console.SafeConsole"


def opens_to_read(node: ast.Call) -> bool:
    """Whether a call of `open` has a mode to read."""
    return any(isinstance(one, ast.Constant) and one.value in ("r", "rb") for one in node.args)


def name_of(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


MODULES = [
    file
    for file in sorted(PACKAGE.rglob("*.py"))
    if name_of(file) not in ("reading.py", "printing.py") and not name_of(file).startswith("demo/")
]


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_nothing_goes_past_it(file):
    assert list(scan(ast.parse(file.read_text(encoding="utf-8")), name_of(file))) == []


def test_the_check_can_fail():
    wrong = "path.read_text()\npath.open('rb')\nopen(path, 'r')\nprint(path)\ntyper.echo(path)\nConsole(stderr=True)\n"
    assert len(list(scan(ast.parse(wrong), "a.py"))) == 6
    assert list(scan(ast.parse("read_text(text, name)\npath.open('wb')\nImage.open(stream)\n"), "a.py")) == []
