"""How a process of several finds the others: started by torchrun, or by `vlmtune train` on one machine.

Nothing listens beyond the loopback unless the processes are on several machines.
"""

import os
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from vlmtune.engine.ranks.single import forget_launchers, gpus_there, note_gpus, take_gpu
from vlmtune.errors import VlmtuneError
from vlmtune.hardware.communication import NCCL_SETTINGS
from vlmtune.hardware.sensors import has_driver, visible_gpus
from vlmtune.runs.versions import library_versions

if TYPE_CHECKING:
    from torch.distributed import Store

SIOCGIFADDR, INTERFACE_BYTES = 0x8915, 256
"""Linux's question for an interface's address (netdevice(7))."""
MEET_WITHIN_S = 60
TRY_AGAIN_S = 0.2
START_WITHIN_S = 600
"""Processes of one machine import the libraries at the same time; whoever started them sees one that dies."""
WAIT_FOR_S = 24 * 3600
"""The first process may encode images or evaluate for hours; one that is gone is noticed at once all the same."""
OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class NotAlike(VlmtuneError):
    """Processes that cannot train together; each of them raises it."""


@dataclass(frozen=True)
class Place:
    """A process's place among those of a run."""

    number: int
    size: int
    gpu: str | None
    """As CUDA_VISIBLE_DEVICES has it; None on a CPU."""
    file: str | None = None
    """By which processes of one machine meet; None: as torchrun's environment says."""
    one_machine: bool = True
    told: dict[str, str] = field(default_factory=dict)
    """What each machine's command line asks for, by name: the first one's is done."""


def place_of_launcher() -> Place | None:
    """Return the place that torchrun gave this process; None where it is alone, or another launcher has started it.

    Raises:
        VlmtuneError: this machine has fewer GPUs than processes.
    """
    given = {name: os.environ.get(name, "") for name in OF_TORCHRUN}
    if not all(given.values()) or given["WORLD_SIZE"] == "1":
        return None
    number, size, on_machine, on_this = (int(given[name]) for name in OF_TORCHRUN[:4])
    return Place(number, size, _gpu_of(on_machine, on_this), one_machine=size == on_this)


def _gpu_of(on_machine: int, num_processes: int) -> str | None:
    """Return the GPU of one of so many processes of this machine; schedulers may show each its own alone."""
    if not has_driver():
        return None
    num_gpus = len(visible_gpus())
    note_gpus(num_gpus)
    if 1 < num_gpus < num_processes:
        raise VlmtuneError(
            f"the launcher has started {num_processes} processes on this machine, and {num_gpus} GPUs are visible",
            f"--nproc-per-node={num_gpus}, or another CUDA_VISIBLE_DEVICES",
        )
    return gpus_there()[on_machine if num_gpus > 1 else 0]


def join(place: Place) -> None:
    """Become a process of a group; `vlmtune.engine.ranks.group` speaks to the others from now on.

    To be called before CUDA starts: each process sees one GPU.

    Raises:
        VlmtuneError: the others cannot be reached, have other versions or were told otherwise, or two would train on
            one GPU.
    """
    if place.gpu is not None:
        take_gpu(place.gpu)
    if place.one_machine and sys.platform == "linux":
        os.environ.update(GLOO_SOCKET_IFNAME="lo", NCCL_SOCKET_IFNAME="lo")
    elif sys.platform == "linux" and (interface := _interface_to(os.environ["MASTER_ADDR"])):
        # gloo would take the one that the machine's name stands for, which is the loopback on many.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    for name, value in NCCL_SETTINGS.items():
        os.environ.setdefault(name, value)
    import torch
    from torch import distributed as dist

    from vlmtune.engine.ranks import group
    from vlmtune.engine.runtime import nccl_as_found

    store = _store(place)
    forget_launchers()
    on_gpu = place.gpu is not None and torch.cuda.is_available()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=store,
        rank=place.number,
        world_size=place.size,
        timeout=timedelta(seconds=WAIT_FOR_S),
    )
    uuid = str(torch.cuda.get_device_properties(0).uuid) if on_gpu else None
    _refuse_differences(group.gathered((socket.gethostname(), uuid, library_versions(), place.told)))
    if on_gpu:
        with nccl_as_found():  # NCCL reads them now
            summed = torch.zeros(group.FIRST_NUMBERS, device="cuda")
            group.COMMUNICATION.taken_bytes = group.taken_by(lambda: group.add_up(summed))


def _interface_to(host: str) -> str | None:
    """Return the network interface by whose address a machine is reached; None where it cannot be told."""
    import fcntl

    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 1, socket.AF_INET, socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # sends nothing
            own = socket.inet_aton(probe.getsockname()[0])
            for _, name in socket.if_nameindex():
                with suppress(OSError):  # one without an address
                    if fcntl.ioctl(probe, SIOCGIFADDR, name.encode().ljust(INTERFACE_BYTES, b"\0"))[20:24] == own:
                        return name
    except OSError:
        pass
    return None


def _store(place: Place) -> "Store":
    """Return where the processes meet, once all are there."""
    from torch import distributed as dist

    within_s = START_WITHIN_S if place.file else MEET_WITHIN_S
    at = place.file or f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    limit = timedelta(seconds=within_s)
    try:
        store = dist.FileStore(place.file, place.size) if place.file else _store_of_launcher(place, limit)
        store.set(str(place.number), "here")
        store.wait([str(number) for number in range(place.size)], limit)
    except (RuntimeError, ValueError, OSError) as error:
        raise VlmtuneError(
            f"process {place.number} of {place.size} did not meet the others at {at} within {within_s} s: "
            f"{str(error).splitlines()[0]}",
            "each machine must reach that address and port, and all processes must have started",
        ) from None
    store.set_timeout(timedelta(seconds=WAIT_FOR_S))
    return store


def _store_of_launcher(place: Place, limit: timedelta) -> "Store":
    """Return the store at the address that torchrun names; where it keeps none there, the first process does."""
    from torch import distributed as dist

    is_there = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_master = place.number == 0 and not is_there
    if not is_master:
        _reach(host, port, limit.total_seconds())
    store = dist.TCPStore(host, port, place.size, is_master=is_master, timeout=limit, wait_for_workers=False)
    return dist.PrefixStore(f"vlmtune/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _reach(host: str, port: int, within_s: float) -> None:
    """Wait until something listens there; torch waits three times as long (TCPStore.cpp tries once more)."""
    until = time.monotonic() + within_s
    while True:
        try:
            socket.create_connection((host, port), timeout=max(TRY_AGAIN_S, until - time.monotonic())).close()
            return
        except OSError:
            if time.monotonic() + TRY_AGAIN_S > until:
                raise
        time.sleep(TRY_AGAIN_S)


def _refuse_differences(processes: list[tuple[str, str | None, dict[str, str], dict[str, str]]]) -> None:
    """Raise where the processes are not alike; each raises the same."""
    first_host, _, first_versions, first_told = processes[0]
    for number, (host, _, versions, told) in enumerate(processes):
        places = f"process 0 on {first_host}: "
        if other := _different(first_versions, versions):
            raise NotAlike(
                f"process {number} on {host} has other versions than {places}{other}",
                "install the same on all machines",
            )
        if other := _different(first_told, told):
            raise NotAlike(
                f"process {number} on {host} was started otherwise than {places}{other}",
                "start vlmtune with the same options and config on all machines",
            )
    gpus = [(host, uuid) for host, uuid, *_ in processes if uuid]
    if len(set(gpus)) < len(gpus):
        raise NotAlike(
            "two processes would train on one GPU", "one process for each GPU: hardware.num_gpus, --nproc-per-node"
        )


def _different(first: dict[str, str], other: dict[str, str]) -> str:
    return ", ".join(f"{name} {first[name]} and {found}" for name, found in other.items() if found != first[name])


def leave() -> None:
    """Leave the group."""
    from torch import distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
