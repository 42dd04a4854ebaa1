"""Each process on one GPU, whatever the environment would make of it.

transformers' Trainer and accelerate follow it unasked: LOCAL_RANK starts a process group, a second visible GPU splits
every batch between copies of the model, ACCELERATE_* change the precision, compile or shard (transformers
training_args.py, `_setup_devices`; accelerate state.py, `PartialState` and `AcceleratorState`).
"""

import os
from time import sleep

from vlmtune.errors import VlmtuneError
from vlmtune.hardware.sensors import has_driver, visible_gpus

NUM_PROCESSES = {
    "WORLD_SIZE": "RANK",
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",
    "PMI_SIZE": "PMI_RANK",
    "MV2_COMM_WORLD_SIZE": "MV2_COMM_WORLD_RANK",
}
"""How many processes torchrun, Open MPI, MPICH and MVAPICH have started (as accelerate reads it), and which this is."""
FIRST_SAYS_WITHIN_S = 20.0
"""The first process says why, and launchers then end the others; one that is not ended by then says it itself."""
OF_LAUNCHERS = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "RANK", "WORLD_SIZE")
OF_ACCELERATE = "ACCELERATE_"
VISIBLE = "CUDA_VISIBLE_DEVICES"
_FOUND: list[str] = []
"""The GPUs that were visible before this process took the first of them."""


def refuse_several_processes() -> None:
    """Raise a VlmtuneError where a launcher has started more than this process; the first raises it first."""
    for name, place in NUM_PROCESSES.items():
        value = os.environ.get(name, "")
        if value.isdecimal() and int(value) > 1:
            if os.environ.get(place, "0") != "0":
                sleep(FIRST_SAYS_WITHIN_S)
            raise VlmtuneError(
                f"{name}={value}: this command is one process on one GPU; each of {value} would do the same work "
                "in the same folder",
                f"start it without a launcher, or unset {name}; only `vlmtune train` runs on several GPUs: "
                "hardware.num_gpus, or torchrun",
            )


def gpus_there() -> tuple[str, ...]:
    """Return the names, as CUDA_VISIBLE_DEVICES has them, of the GPUs that were visible when this process began."""
    return tuple(_FOUND) or (os.environ.get(VISIBLE, "0").split(",")[0],)


def take_gpu(name: str) -> None:
    """Let CUDA see one of the GPUs there, before it starts in this process."""
    os.environ[VISIBLE] = name


def stay_single() -> tuple[str, ...]:
    """Make this a process on one GPU, in no group; return in words what the environment asked for otherwise.

    To be called before CUDA starts, which reads CUDA_VISIBLE_DEVICES once.

    Raises:
        VlmtuneError: a launcher has started several processes.
    """
    refuse_several_processes()
    return (*forget_launchers(), *_take_one_gpu())


def forget_launchers() -> tuple[str, ...]:
    """Remove what launchers and accelerate's configuration leave in the environment."""
    names = sorted(name for name in os.environ if name in OF_LAUNCHERS or name.startswith(OF_ACCELERATE))
    for name in names:
        del os.environ[name]
    return (f"not followed: {', '.join(names)}; vlmtune is one process, and its config decides",) if names else ()


def _take_one_gpu() -> tuple[str, ...]:
    """Leave CUDA its first device alone; say which one that is where there are others."""
    num_gpus = len(visible_gpus())
    if num_gpus == 1 or not has_driver():
        return ()
    note_gpus(num_gpus)
    # Also where NVML does not tell how many there are, as in containers without the driver's tools.
    os.environ[VISIBLE] = os.environ.get(VISIBLE, "0").split(",")[0]
    if num_gpus == 0:
        return ()
    import torch

    # By torch, for NVML counts in another order: CUDA's first device is the fastest, not the first on the bus.
    if not torch.cuda.is_available():
        return ()
    name = torch.cuda.get_device_properties(0).name
    return (f"{num_gpus} GPUs are visible, this process uses the first: {name}; {VISIBLE} chooses another",)


def note_gpus(num_gpus: int) -> None:
    """Keep the names of the visible GPUs, before one of them is taken."""
    names = os.environ.get(VISIBLE, "").split(",") if os.environ.get(VISIBLE) else map(str, range(num_gpus))
    _FOUND[:] = list(names)[:num_gpus]
