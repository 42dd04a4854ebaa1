"""The signals that end a run and leave it so that it can be continued. Everything may import this."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import NoReturn

_came: list[int] = []
"""Signals of which KeyboardInterrupt was raised in the outermost block."""


def stopping_signals() -> tuple[signal.Signals, ...]:
    """Return Ctrl-C's signal, that of schedulers and that of a closed terminal; not one that `nohup` has turned off."""
    there = [signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if name in signal.Signals.__members__]
    return (signal.SIGINT, *(one for one in there if signal.getsignal(one) is not signal.SIG_IGN))


def all_as_ctrl_c() -> AbstractContextManager[None]:
    """Let each of them raise KeyboardInterrupt, which says where the run stands, for a while."""
    return as_ctrl_c(stopping_signals())


@contextmanager
def as_ctrl_c(numbers: Sequence[signal.Signals] = (signal.SIGINT,)) -> Iterator[None]:
    """Let these signals raise KeyboardInterrupt for a while, and be known to `heed`."""
    before = {number: signal.getsignal(number) for number in numbers}
    is_outermost = before[signal.SIGINT] is not _interrupt
    if before[signal.SIGINT] is not signal.default_int_handler:
        del before[signal.SIGINT]  # of an outer block, somebody else's, or turned off
    for number in before:
        signal.signal(number, _interrupt)
    try:
        yield
    except Exception as error:
        # Of what a handler raises in the middle of it, C code may make an error of its own: torch, of a sequence.
        if _came:
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if is_outermost:
            _came.clear()


def heed() -> None:
    """Raise KeyboardInterrupt for a signal that came before, where C code has thrown that one's away.

    Python says "Exception ignored in" then: seen of pydantic, as it made a validator.
    """
    if _came:
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    _came.append(number)
    raise KeyboardInterrupt
