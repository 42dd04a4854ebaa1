"""What commands show on a terminal while they work: on standard error, which programs do not read."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING

from vlmtune.config.values import Values, words_of
from vlmtune.data.progress import Advance, Progress, silent

if TYPE_CHECKING:
    from vlmtune.console import SafeConsole

SHOWN_AFTER_S = 1.0


def progress(live: bool) -> Progress:
    """Return who is told of long work: a bar, or nobody where nobody looks."""
    return bar if live and sys.stderr.isatty() else silent


@cache
def standard_error(*, live: bool) -> "SafeConsole":
    """Return the one console on standard error: what is live on it at once stands below each other.

    Without `live` it shows nothing: what a command prints is read by a program.
    """
    from vlmtune.console import SafeConsole

    return SafeConsole(stderr=True, quiet=not live)


@contextmanager
def bar(what: str, total: int) -> Iterator[Advance]:
    """Show how far the work is once it takes longer than a second, and nothing afterwards."""
    started_s, done, shown = time.monotonic(), 0, None
    with ExitStack() as stack:

        def advance(amount: int) -> None:
            nonlocal done, shown
            done += amount
            if shown is None and time.monotonic() - started_s > SHOWN_AFTER_S:
                shown = stack.enter_context(_bar(what, total))
            if shown:
                shown(done)

        yield advance


@contextmanager
def simulating(unchanged: str, *, live: bool) -> Iterator[Callable[[Values], None]]:
    """Show which config is simulated, of several that take seconds each: the values that are told, or `unchanged`."""
    tried = 0
    with standard_error(live=live).status("simulating training steps…") as status:

        def tell(values: Values) -> None:
            nonlocal tried
            tried += 1
            status.update(f"simulating training steps: config {tried}, {' '.join(words_of(values)) or unchanged}")

        yield tell


@contextmanager
def _bar(what: str, total: int) -> Iterator[Advance]:
    from rich import progress as rich

    columns = (rich.TextColumn(what), rich.BarColumn(), rich.TaskProgressColumn(), rich.TimeRemainingColumn())
    with rich.Progress(*columns, console=standard_error(live=True), transient=True) as shown:
        task = shown.add_task(what, total=total)
        yield lambda done: shown.update(task, completed=done)
