"""Work in processes of its own: in order, errors in their place, and done in any case."""

import gc
import multiprocessing
import os
import signal
import time

import pytest

from vlmtune.data.table import pool
from vlmtune.data.table.pool import each
from vlmtune.errors import VlmtuneError

HERE = os.getpid()


def squared(number: int) -> tuple[int, int]:
    if number < 0:
        raise VlmtuneError(f"{number} has no place here", "give another")
    return number**2, os.getpid()


def square_or_die(task: tuple[int, int]) -> int:
    number, parent = task
    if os.getpid() != parent and number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def test_results_come_in_the_order_of_the_tasks_from_other_processes():
    results = list(each(squared, list(range(8))))
    assert [number for number, _ in results] == [0, 1, 4, 9, 16, 25, 36, 49]
    assert HERE not in {process for _, process in results}


def objects_until_look(task: int) -> int:
    return gc.get_threshold()[0]


def test_other_processes_seldom_look_for_objects_that_hold_each_other():
    here = objects_until_look(0)
    assert list(each(objects_until_look, [0])) == [pool.OBJECTS_UNTIL_LOOK] != [here]
    assert objects_until_look(0) == here


def test_the_first_error_is_raised_whole_where_its_result_would_come():
    results = each(squared, [1, -2, -3])
    assert next(results)[0] == 1
    with pytest.raises(VlmtuneError) as error:
        next(results)
    assert (error.value.message, error.value.hint) == ("-2 has no place here", "give another")


def test_the_work_of_a_killed_process_is_done_here():
    assert list(each(square_or_die, [(number, HERE) for number in range(6)])) == [0, 1, 4, 9, 16, 25]


def sleep_or_square(number: int) -> int:
    time.sleep(600 if number == 1 else 0)
    return number**2


def test_processes_that_hang_are_ended_and_named(monkeypatch):
    monkeypatch.setattr(pool, "HANGS_AFTER_S", 3)
    results = each(sleep_or_square, [0, 1, 2])
    assert next(results) == 0
    with pytest.raises(VlmtuneError, match="the processes that read the data gave nothing for 0 minutes"):
        next(results)
    assert multiprocessing.active_children() == []


def test_no_tasks_have_no_results():
    assert list(each(squared, [])) == []
