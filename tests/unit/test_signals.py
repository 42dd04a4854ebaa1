"""Signals that end a run while it loads, prepares or writes."""

import signal
from contextlib import suppress

import pytest

from vlmtune.signals import all_as_ctrl_c, as_ctrl_c, heed


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_of_which_a_library_makes_an_error_ends_the_run_all_the_same(name):
    before = signal.getsignal(signal.Signals[name])
    with pytest.raises(KeyboardInterrupt), all_as_ctrl_c():
        try:
            signal.raise_signal(signal.Signals[name])
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape of a sequence") from None
    assert signal.getsignal(signal.Signals[name]) is before


def test_an_error_without_a_signal_stays_what_it_is():
    with pytest.raises(ValueError, match="shape"), all_as_ctrl_c():
        raise ValueError("no shape")


def test_a_signal_that_a_library_throws_away_is_heeded_later_and_once():
    with pytest.raises(KeyboardInterrupt), as_ctrl_c():
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with all_as_ctrl_c():
            heed()
    heed()
    with all_as_ctrl_c():
        heed()
