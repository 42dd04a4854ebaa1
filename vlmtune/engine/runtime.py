"""The machine a run finds itself on: device, allocator settings, quiet libraries."""

import atexit
import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from vlmtune.errors import VlmtuneError
from vlmtune.plan.types import Device

_TORCH_LOGS = "TORCH_LOGS"

OF_NCCL = ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE")
_set_here: set[str] = set()


def prepare_environment() -> None:
    """Set what torch and transformers read when they are imported; call it before that.

    Expandable segments keep reserved memory near allocated memory; the driver supports them on Linux only.
    What the user has set stays.
    """
    if sys.platform == "linux":
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # The hub library tells of each of its retries; where the hub cannot be reached, our own message says so.
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")
    # transformers would train on a TPU wherever torch_xla is installed, and report to a Kubeflow server unasked.
    os.environ["USE_TORCH_XLA"] = "0"
    os.environ.setdefault("DISABLE_KUBEFLOW_INTEGRATION", "TRUE")
    # accelerate refuses pairs of RTX 40 cards on older drivers unless NCCL is told to leave them alone.
    for name in {*OF_NCCL} - os.environ.keys():
        os.environ[name] = "1"
        _set_here.add(name)
    # It speaks at import about an optional kernel package for CPUs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if os.environ.get(_TORCH_LOGS):
        _import_with_logs()


def _import_with_logs() -> None:
    """Import torch, which alone knows the names that its variable may hold; raise for others."""
    try:
        import torch  # noqa: F401
    except ValueError:
        value = os.environ[_TORCH_LOGS]
        raise VlmtuneError(
            f"the environment variable {_TORCH_LOGS} is {value!r}, which PyTorch does not take", f"unset {_TORCH_LOGS}"
        ) from None


@contextmanager
def nccl_as_found() -> Iterator[None]:
    """Let NCCL, or processes that are started, find its settings as they were: only accelerate was to see others."""
    for name in _set_here:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.update(dict.fromkeys(_set_here, "1"))


def quiet_libraries() -> None:
    """Silence progress bars and notices of libraries: the live view is the only voice of a run."""
    import warnings

    import transformers

    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft|accelerate")


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector: imports and simulations make millions of objects, hardly any of them garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@cache
def freeze_libraries() -> None:
    """Let the garbage collector look at nothing that is here by now, once: call it before a model is built.

    What imports leave, a million objects, is never garbage; looking through it takes half a second each time that a
    run collects.
    """
    gc.freeze()
    atexit.register(gc.unfreeze)  # libraries tell of what they find alive at the end


def probe_device() -> Device:
    """Return the GPU that torch will use, or the CPU."""
    import torch

    from vlmtune.engine.ranks import group
    from vlmtune.engine.ranks.single import gpus_there
    from vlmtune.hardware.triton import why_no_triton

    launched = group.size() > 1
    if not torch.cuda.is_available():
        return Device("cpu", "CPU", bf16=False, num_gpus=group.size() if launched else 0, launched=launched)
    properties = torch.cuda.get_device_properties(0)
    # Older cards emulate bf16 slowly; from Ampere on it is computed.
    return Device(
        "cuda",
        properties.name,
        bf16=properties.major >= 8,
        total_bytes=properties.total_memory,
        num_gpus=group.size() if launched else len(gpus_there()),
        launched=launched,
        no_triton=why_no_triton(),
    )
