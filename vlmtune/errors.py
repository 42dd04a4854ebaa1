"""The one error type users see, and the exit codes. Everything may import this; it imports nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum


class ExitCode(IntEnum):
    """What the process returns. Typer itself owns 2 (wrong command line)."""

    OK = 0
    ERROR = 1
    USAGE = 2
    DOES_NOT_FIT = 3
    CANNOT_TELL = 4
    INTERRUPTED = 130


class VlmtuneError(Exception):
    """A mistake or a limit that the user can act on: printed as `error:` and `hint:`, never as a traceback.

    `message` says what is wrong and where; `hint` says what to do. Several problems found in one pass
    (a config with three wrong keys, a data file with ten bad rows) are one error with several `problems`.
    """

    def __init__(
        self,
        message: str,
        hint: str | None = None,
        *,
        problems: "tuple[VlmtuneError, ...]" = (),
        code: ExitCode = ExitCode.ERROR,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.problems = problems
        self.code = code

    def __str__(self) -> str:
        lines = [self.message]
        if self.hint:
            lines.append(f"hint: {self.hint}")
        lines += [str(problem) for problem in self.problems]
        return "\n".join(lines)


@contextmanager
def given_as(key: str, word: str) -> Iterator[None]:
    """Let an error about a key of the config name what stands for it on the command line."""
    try:
        yield
    except VlmtuneError as error:
        if error.message.startswith(f"{key}:"):
            error.message = error.message.replace(key, word, 1)
        raise
