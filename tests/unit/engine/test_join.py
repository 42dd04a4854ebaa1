"""Where torchrun has put a process, and which processes do not go together."""

import os
import socket

import pytest

from vlmtune.engine.ranks import join, single
from vlmtune.engine.ranks.join import Place, place_of_launcher
from vlmtune.errors import VlmtuneError

VISIBLE = "CUDA_VISIBLE_DEVICES"
VERSIONS = {"torch": "2.11.0", "vlmtune": "0.2.0"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """An environment of its own for each test, and no GPU found before."""
    monkeypatch.setattr(os, "environ", {key: value for key, value in os.environ.items() if key != VISIBLE})
    monkeypatch.setattr(single, "_FOUND", [])


@pytest.fixture
def launched(monkeypatch):
    """A function that makes up what torchrun has set, on a machine with so many GPUs."""

    def launch(rank, size, local, on_machine, num_gpus):
        values = (rank, size, local, on_machine, "10.0.0.1", 29500)
        os.environ.update(zip(join.OF_TORCHRUN, map(str, values), strict=True))
        monkeypatch.setattr(join, "has_driver", lambda: num_gpus > 0)
        monkeypatch.setattr(join, "visible_gpus", lambda: dict.fromkeys(range(num_gpus)))
        return place_of_launcher()

    return launch


def test_a_process_takes_the_gpu_of_its_number_on_its_machine(launched):
    assert launched(5, 8, 1, 4, num_gpus=4) == Place(5, 8, "1", None, one_machine=False)
    assert launched(1, 2, 1, 2, num_gpus=4) == Place(1, 2, "1", None, one_machine=True)


def test_of_the_gpus_that_are_visible(launched):
    os.environ[VISIBLE] = "3,GPU-a"
    assert launched(1, 2, 1, 2, num_gpus=2).gpu == "GPU-a"


def test_where_a_scheduler_shows_each_process_one_it_takes_that(launched):
    os.environ[VISIBLE] = "6"
    assert launched(1, 2, 1, 2, num_gpus=1).gpu == "6"


def test_on_a_cpu_there_is_none(launched):
    assert launched(1, 2, 1, 2, num_gpus=0).gpu is None


def test_more_processes_than_gpus_are_refused(launched):
    with pytest.raises(VlmtuneError, match="4 processes on this machine, and 2 GPUs are visible"):
        launched(0, 4, 0, 4, num_gpus=2)


def test_one_process_is_alone(launched):
    assert launched(0, 1, 0, 1, num_gpus=2) is None
    del os.environ["RANK"]
    os.environ["WORLD_SIZE"] = "2"
    assert place_of_launcher() is None, "another launcher: refused later, by name"


def test_processes_must_be_alike():
    told = {"config": "12ab", "options": "none"}
    first, alike = ("a", "GPU-0", VERSIONS, told), ("b", "GPU-0", VERSIONS, told)
    join._refuse_differences([first, alike])
    with pytest.raises(VlmtuneError, match="process 1 on b has other versions than process 0 on a: torch 2.11.0 a"):
        join._refuse_differences([first, ("b", "GPU-1", {**VERSIONS, "torch": "3"}, told)])
    with pytest.raises(
        VlmtuneError, match="process 1 on b was started otherwise than process 0 on a: config 12ab and 3"
    ):
        join._refuse_differences([first, ("b", "GPU-1", VERSIONS, {**told, "config": "3"})])
    with pytest.raises(VlmtuneError, match="two processes would train on one GPU"):
        join._refuse_differences([first, ("a", "GPU-0", VERSIONS, told)])
    join._refuse_differences([("a", None, VERSIONS, told)] * 2)


def test_who_meets_nobody_says_where_it_tried_and_nothing_else(monkeypatch, capfd):
    monkeypatch.setattr(join, "MEET_WITHIN_S", 0.2)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="9", TORCHELASTIC_USE_AGENT_STORE="True")
    with pytest.raises(VlmtuneError, match=r"process 1 of 2 did not meet the others at 127\.0\.0\.1:9 within 0\.2 s"):
        join._store(Place(1, 2, None))
    assert capfd.readouterr().err == "", "torch would try again, for three times as long"


def test_the_interface_is_that_of_the_way_to_the_first_machine(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", socket.socket.__mro__[1].connect)  # a datagram's: nothing is sent
    assert join._interface_to("127.0.0.1") == "lo"
    assert join._interface_to("no.such.machine.invalid") is None
