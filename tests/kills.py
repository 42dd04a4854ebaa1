"""Ends a run as a kill does, but in this process: another one would import everything anew, seven seconds of work.

That a process which really dies leaves the same is shown by test_resume.py.
"""

from collections.abc import Iterator
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
