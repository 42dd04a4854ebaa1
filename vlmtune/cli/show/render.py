"""Output that commands share: errors, JSON, tables. Imported inside the functions that print: rich takes time."""

import json

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from vlmtune.console import SafeConsole
from vlmtune.errors import VlmtuneError
from vlmtune.printing import say_json


def console() -> SafeConsole:
    """A console on standard output."""
    return SafeConsole()


def print_json(value: object) -> None:
    """Print a value for programs: JSON and nothing else on standard output."""
    say_json(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table; the columns named in `right` are numbers."""
    made = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def print_error(error: VlmtuneError) -> None:
    """Print an error and its problems to standard error, one line each however narrow the terminal."""
    out = SafeConsole(stderr=True, soft_wrap=True)
    out.print(Text.assemble(("error: ", "bold red"), _line(error.message)))
    if not _is_its_only_problem(error):
        width = len(str(len(error.problems)))
        for number, problem in enumerate(error.problems, 1):
            out.print(Text(f"  {number:{width}}. {_line(problem.message)}"))
            if problem.hint:
                out.print(Text.assemble(" " * (width + 4), ("hint: ", "bold cyan"), _line(problem.hint)))
    if error.hint:
        out.print(Text.assemble(("hint:  ", "bold cyan"), _line(error.hint)))


def _line(text: str) -> str:
    """Return text in one line: a name with a line end would be read as another message."""
    return text.replace("\n", " ")


def _is_its_only_problem(error: VlmtuneError) -> bool:
    return len(error.problems) == 1 and error.problems[0].message == error.message
