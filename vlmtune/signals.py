"""The signals that end a run and leave it so that it can be continued. Everything may import this."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


def stopping_signals() -> tuple[signal.Signals, ...]:
    """Return Ctrl-C's signal, that of schedulers and that of a closed terminal; not one that `nohup` has turned off."""
    there = [signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if name in signal.Signals.__members__]
    return (signal.SIGINT, *(one for one in there if signal.getsignal(one) is not signal.SIG_IGN))


@contextmanager
def all_as_ctrl_c() -> Iterator[None]:
    """Let each of them raise KeyboardInterrupt, which says where the run stands, for a while."""
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        came.append(number)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in stopping_signals()}
    if before[signal.SIGINT] is not signal.default_int_handler:
        del before[signal.SIGINT]  # somebody else's, or turned off
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    except Exception as error:
        # Of what a handler raises in the middle of it, C code may make an error of its own: torch, of a sequence.
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
