"""The live view of a training run: one panel on a terminal, one plain line per record elsewhere."""

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from vlmtune.console import SafeConsole
from vlmtune.data.progress import Advance
from vlmtune.engine.panel import Course, panel_of, plain_line
from vlmtune.runs.records import StepRecord

REDRAWN_AFTER_S = 0.5
LINE_AFTER_S = 30.0


class RunConsole(SafeConsole):
    """A console that leaves it to the live view what a pipe without a reader means: rich ends the process there."""

    def on_broken_pipe(self) -> None:
        """Raise the BrokenPipeError that was caught."""
        raise  # noqa: PLE0704  rich calls this where it has caught it


class LiveView:
    """Shows a run while it happens: `with LiveView("my-run") as view: view.update(record)`."""

    def __init__(self, title: str, console: Console | None = None, *, slowdown_c: int | None = None) -> None:
        """`slowdown_c` is the temperature at which the card slows itself down; None where it is not known."""
        self._title = title
        self._console = console or RunConsole()
        self._slowdown_c = slowdown_c
        self._course = Course()
        can_redraw = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = Live(console=self._console, auto_refresh=False) if can_redraw else None

    def __enter__(self) -> Self:
        """Start the view."""
        if self._live:
            self._live.start()
            self._draw(self._live)
        else:
            self._line(self._title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the view and leave its last state on the screen."""
        if self._live:
            self._live.stop()

    def expect(self, left_s: float) -> None:
        """Show how long the run is predicted to take, until its own steps tell."""
        self._course.expect(left_s)
        if self._live:
            self._draw(self._live)

    def update(self, record: StepRecord) -> None:
        """Show one more record."""
        self._course.add(record)
        if self._live:
            self._draw(self._live)
        else:
            self._line(plain_line(record, slowdown_c=self._slowdown_c))

    @contextmanager
    def doing(self, what: str, total: int) -> Iterator[Advance]:
        """Show how far work before the first step is: a `Progress` for whom the terminal is taken by this view."""
        with self._working(what, total, REDRAWN_AFTER_S if self._live else math.inf) as advance:
            yield advance

    @contextmanager
    def between_steps(self, what: str, total: int) -> Iterator[Advance]:
        """Show work between steps from its start on, in lines too: a `Progress`."""
        shown_after_s = REDRAWN_AFTER_S if self._live else LINE_AFTER_S
        with self._working(what, total, shown_after_s, at_once=True) as advance:
            yield advance

    @contextmanager
    def _working(self, what: str, total: int, shown_after_s: float, *, at_once: bool = False) -> Iterator[Advance]:
        """Show work again whenever some time has passed."""
        done, shown_s = 0, time.monotonic()

        def show() -> None:
            self._course.now = f"{what}: {done:,} of {total:,}"
            if self._live:
                self._draw(self._live)
            else:
                self._line(self._course.now)

        def advance(amount: int) -> None:
            nonlocal done, shown_s
            done += amount
            if time.monotonic() - shown_s > shown_after_s:
                show()
                shown_s = time.monotonic()

        if at_once:
            show()
        yield advance
        self._course.now = None if self._course.last else self._course.at_first

    def note(self, text: str) -> None:
        """Print a line above the view."""
        self._line(text, style="dim")

    def warn(self, text: str) -> None:
        """Print a warning above the view."""
        self._line(f"warning: {text}", style="yellow")

    def _draw(self, live: Live) -> None:
        """Draw the panel as it is now."""
        panel = panel_of(self._course, self._title, self._slowdown_c)
        self._show(lambda: live.update(panel, refresh=True))

    def _line(self, text: str, style: str = "") -> None:
        """Print text; only a terminal wraps it."""
        self._show(lambda: self._console.print(Text(text, style=style), soft_wrap=self._live is None))

    def _show(self, show: Callable[[], None]) -> None:
        """Show something. Whoever read it may be gone, as `head` is in a pipe: that ends the run as Ctrl-C does."""
        try:
            show()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._console.file.fileno())  # what is yet to come goes nowhere
            sys.stderr.write("nobody reads the output any more: stopping as after Ctrl-C\n")
            signal.raise_signal(getattr(signal, "SIGHUP", signal.SIGINT))
