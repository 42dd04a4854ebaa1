"""What watches a run."""

from types import SimpleNamespace

import pytest

from vlmtune.engine.ranks import follow
from vlmtune.engine.ranks.follow import SaveByMinutes


@pytest.fixture
def clock(monkeypatch):
    """The time, in seconds, as `now`."""
    clock = SimpleNamespace(now=1e6)
    monkeypatch.setattr(follow, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_a_checkpoint_is_asked_for_after_so_many_minutes(clock):
    watch, asked = SaveByMinutes(0.5), []
    watch.on_train_begin(None, None, None)
    for second in range(1, 101):
        clock.now += 1
        control = SimpleNamespace(should_save=second == 40)  # a step of save_steps
        watch.on_step_end(None, None, control)
        if control.should_save:
            asked.append(second)
            watch.on_save(None, None, control)
    assert asked == [30, 40, 70, 100]
