"""Ends a run as a kill does, in this process or in one forked from it: a new one would import everything anew.

That a process which really dies leaves the same as one that only seems to is shown by test_resume.py.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest


class Killed(BaseException):
    """Stands for a kill where no code may run afterwards: nothing catches it."""


@contextmanager
def killed_after_step(step: int) -> Iterator[None]:
    """Kill the run that is started inside when it has logged this step."""
    from vlmtune.engine.callbacks import Recorder

    real = Recorder.on_log

    def log_and_die(recorder, args, state, control, **kwargs) -> None:
        real(recorder, args, state, control, **kwargs)
        if state.global_step == step:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Recorder, "on_log", log_and_die)
        yield


def exit_code_of(work: Callable[[], object]) -> int:
    """Do this in a process of its own, which may change all that it finds, and return how it ended: -9, by a kill."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    process.kill()
    return process.exitcode
