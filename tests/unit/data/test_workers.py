"""Processes that read: one that dies or hangs ends the run with an error that names its row, and none is left."""

import multiprocessing
import os
import signal
import time

import pytest
from torch.utils.data import DataLoader, Dataset

from vlmtune.data import workers
from vlmtune.data.progress import nobody
from vlmtune.data.workers import READERS
from vlmtune.errors import VlmtuneError

BAD = 5


class Rows(Dataset):
    """Numbers; the process that reads one of them comes to harm."""

    def __init__(self, harm) -> None:
        self.harm, self.on_read = harm, nobody

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        self.on_read(index)
        if index == BAD:
            self.harm()
        return index


def read_all(harm) -> list:
    loader = READERS.watch(DataLoader(Rows(harm), batch_size=None, num_workers=2), lambda row: f"rows.jsonl:{row + 1}")
    with READERS.ended():
        return [int(number) for number in loader]


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def crashed():
    os.kill(os.getpid(), signal.SIGSEGV)


def gone():
    os._exit(3)


def stuck():
    time.sleep(600)


@pytest.mark.parametrize(
    ("harm", "said", "hint"),
    [
        (killed, "is killed by signal: Killed, at rows.jsonl:6: the system ends processes so", "hardware.num_workers"),
        (crashed, "is killed by signal: Segmentation fault, at rows.jsonl:6", "leave that row out"),
        (gone, "exited unexpectedly with exit code 3, at rows.jsonl:6", "leave that row out"),
        (stuck, "the processes that read images gave nothing for 0 minutes, at rows.jsonl:", "look at it"),
    ],
)
def test_a_process_that_is_lost_ends_the_run_and_names_its_row(monkeypatch, harm, said, hint):
    monkeypatch.setattr(workers, "HANGS_AFTER_S", 0.5 if harm is stuck else 60)
    began = time.monotonic()
    with pytest.raises(VlmtuneError) as told:
        read_all(harm)
    assert said in told.value.message and hint in told.value.hint
    assert ":6" in told.value.message
    assert multiprocessing.active_children() == [] and time.monotonic() - began < 30
    assert READERS.loaders == []


def test_a_process_that_hangs_does_not_keep_this_one():
    """Whatever ends it: one that is stuck ignores SIGTERM, and would be waited for at exit."""
    reading = iter(READERS.watch(DataLoader(Rows(stuck), batch_size=None, num_workers=1), str))
    with pytest.raises(KeyboardInterrupt), READERS.ended():
        assert [int(next(reading)) for _ in range(BAD)] == list(range(BAD))
        raise KeyboardInterrupt
    assert multiprocessing.active_children() == []


def test_processes_that_outlive_an_epoch_end_with_the_run():
    """They ignore signals: left to a garbage collection that does not come, they keep this process from ending."""
    rows = DataLoader(Rows(nobody_is_harmed), batch_size=None, num_workers=2, persistent_workers=True)
    with READERS.ended():
        reading = iter(READERS.watch(rows, str))
        assert int(next(reading)) == 0
    assert multiprocessing.active_children() == []


def test_whole_rows_are_read_and_bugs_stay_bugs():
    assert read_all(nobody_is_harmed) == list(range(8))
    with pytest.raises(ZeroDivisionError):
        read_all(a_bug)


def nobody_is_harmed():
    pass


def a_bug():
    raise ZeroDivisionError
