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
    before = {number: signal.getsignal(number) for number in stopping_signals()[1:]}
    for number in before:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
