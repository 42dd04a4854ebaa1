"""The checks of `vlmtune doctor`: what on this machine would stop or slow a training run, each with its remedy.

Pure functions from a Machine to findings; reading the machine is `hardware.machine`'s work. Imported by `cli` only.
"""

from dataclasses import dataclass
from typing import Literal

from vlmtune.data.workers import PREFETCHED
from vlmtune.estimate.main_memory import CUDA_BYTES, LIBRARIES_BYTES, WORKER_BYTES
from vlmtune.hardware.machine import SHARED_MEMORY, Machine
from vlmtune.hardware.sensors import GpuReading
from vlmtune.runs.versions import LIBRARIES
from vlmtune.units import GIB

LOW_DISK_BYTES = 20 * 10**9
USUAL_BYTES = LIBRARIES_BYTES + CUDA_BYTES + 2 * WORKER_BYTES + GIB // 2
"""Of main memory, in a run on a card: half a GiB for batches and the adapters' way to a checkpoint."""
LOW_MEMORY_BYTES = USUAL_BYTES * 3 // 2
NUM_WORKERS = 2
"""Of a run on a card that says nothing of it."""
PHOTO_BYTES = 12_000_000 * 3 * 4
"""12 megapixels as tensors: models that cut pictures into tiles take most of it."""
LOW_SHARED_BYTES = NUM_WORKERS * PREFETCHED * PHOTO_BYTES
LOW_GPU_FREE_SHARE = 0.85
NEAR_SLOWDOWN_C = 3
REINSTALL_TORCH = "pip install --force-reinstall torch torchvision"
CPU_ONLY = "training runs on the CPU, good for smoke runs only"


@dataclass(frozen=True)
class Diagnosis:
    """What one look at the machine found. `problem` stops a training run, `warning` slows or endangers it."""

    name: str
    state: Literal["ok", "warning", "problem"]
    found: str
    remedy: str | None = None


def check_machine(machine: Machine) -> list[Diagnosis]:
    """Return the findings, in the order they should be put right."""
    return [
        _version("python", machine.python, machine.windows.get("python")),
        *(_version(name, machine.versions[name], machine.windows.get(name)) for name in LIBRARIES),
        *_loading(machine),
        *_gpu(machine),
        *_disk(machine),
        *_memory(machine),
        *_shared_memory(machine),
    ]


def _version(name: str, found: str, window: str | None) -> Diagnosis:
    """Return whether the installed version of a library lies in its supported window."""
    wanted = f"{name}{window or ''}"
    if found == "not installed":
        return Diagnosis(name, "problem", found, f'pip install "{wanted}"')
    if window is None:
        return Diagnosis(
            name, "warning", f"{found}, supported versions unknown", "install vlmtune itself: pip install -e ."
        )
    from packaging.specifiers import SpecifierSet

    if SpecifierSet(window).contains(found, prereleases=True):
        return Diagnosis(name, "ok", f"{found} ({window})" if window else found)
    remedy = f"use Python {window}" if name == "python" else f'pip install "{wanted}"'
    return Diagnosis(name, "problem", f"{found}, supported is {window}", remedy)


def _loading(machine: Machine) -> list[Diagnosis]:
    """Return whether the installed libraries load; without torch the others cannot, and say nothing new."""
    installed = [name for name in ("torch", "torchvision", "bitsandbytes") if machine.versions[name] != "not installed"]
    if "torch" not in installed:
        return []
    if "error" in machine.probe["torch"]:
        return [_torch(machine)]
    look = {"torch": _torch, "torchvision": _torchvision, "bitsandbytes": _bitsandbytes}
    return [look[name](machine) for name in installed]


def _torch(machine: Machine) -> Diagnosis:
    """Return whether torch loads, and computes on the card when there is one."""
    torch, cuda = machine.probe["torch"], machine.probe["cuda"]
    if error := torch.get("error"):
        return Diagnosis("torch loads", "problem", error, REINSTALL_TORCH)
    build = f"built for CUDA {torch['cuda']}" if torch["cuda"] else "built for the CPU only"
    if error := cuda.get("error"):
        return Diagnosis("torch loads", "problem", f"{build}; computing on the card fails: {error}", REINSTALL_TORCH)
    if torch["available"] or machine.gpu is None:
        return Diagnosis("torch loads", "ok", build)
    if not torch["cuda"]:
        return Diagnosis("torch loads", "problem", f"{build}, so the card is not used", REINSTALL_TORCH)
    return Diagnosis(
        "torch loads", "problem", f"{build}, but cannot use the card", _driver_remedy(torch["cuda"], machine.gpu)
    )


def _driver_remedy(torch_cuda: str, gpu: GpuReading) -> str:
    """Return what to do when torch does not see a card that the driver sees."""
    if int(gpu.cuda_version.split(".")[0]) < int(torch_cuda.split(".")[0]):
        return (
            f"driver {gpu.driver} runs CUDA up to {gpu.cuda_version}: update the NVIDIA driver, "
            f"or install a torch built for CUDA {gpu.cuda_version.split('.')[0]}"
        )
    return "restart the machine: the driver may have been updated since the last start"


def _torchvision(machine: Machine) -> Diagnosis:
    """Return whether torchvision loads beside this torch."""
    found = machine.probe["torchvision"]
    if "error" not in found:
        return Diagnosis("torchvision loads", "ok", "yes")
    if ("+cpu" in machine.probe["torch"]["version"]) != ("+cpu" in machine.versions["torchvision"]):
        remedy = f"{REINSTALL_TORCH} (the default builds run on a CPU too)"
        return Diagnosis("torchvision loads", "problem", "one of torch and torchvision is a CPU-only build", remedy)
    return Diagnosis("torchvision loads", "problem", found["error"], REINSTALL_TORCH)


def _bitsandbytes(machine: Machine) -> Diagnosis:
    """Return whether bitsandbytes has a native library for this torch and quantises with it."""
    found = machine.probe["bitsandbytes"]
    if "error" not in found:
        device = "the card" if found["device"] == "cuda" else "the CPU"
        return Diagnosis("bitsandbytes works", "ok", f"quantises to 4 bits on {device}")
    remedy = "pip install --force-reinstall --no-deps bitsandbytes; details: python -m bitsandbytes"
    return Diagnosis("bitsandbytes works", "problem", found["error"], remedy)


def _gpu(machine: Machine) -> list[Diagnosis]:
    """Return the findings about the card."""
    gpu, cuda = machine.gpu, machine.probe["cuda"]
    if gpu is None and "name" in cuda:
        amount = f"{cuda['name']}, {_gib(cuda['free_bytes'])} of {_gib(cuda['total_bytes'])} GiB free"
        one = Diagnosis("gpu", "ok", f"{amount}; no NVML, so no temperature and no list of processes")
        return [one, *_others(cuda["names"]), *_together(machine)]
    if gpu is None:
        hidden = machine.visible_devices is not None
        why = f"none visible (CUDA_VISIBLE_DEVICES={machine.visible_devices})" if hidden else "none found"
        return [Diagnosis("gpu", "warning", why, CPU_ONLY)]
    checks = [Diagnosis("gpu", "ok", f"{gpu.name}, driver {gpu.driver} (CUDA up to {gpu.cuda_version})")]
    checks += [*_others(cuda.get("names", [])), *_together(machine), _gpu_memory(gpu)]
    return [*checks, _temperature(gpu, gpu.temperature_c)] if gpu.temperature_c is not None else checks


def _others(names: list[str]) -> list[Diagnosis]:
    """Return which of several visible cards is used; the names are in CUDA's order."""
    if len(names) < 2:
        return []
    unused = ", ".join(names[1:])
    found = f"{len(names)} visible, used is the first: {names[0]}; not used: {unused}"
    more = "CUDA_VISIBLE_DEVICES chooses another, hardware.num_gpus takes several"
    return [Diagnosis("several gpus", "ok", f"{found}; {more}")]


def _together(machine: Machine) -> list[Diagnosis]:
    """Return how several cards would train together: what links them, through what they add up, and are they alike."""
    cuda = machine.probe["cuda"]
    if len(cuda.get("names", [])) < 2:
        return []
    if cuda["nccl"] is None:
        remedy = "hardware.num_gpus above 1 needs Linux, and torch's own wheel"
        return [Diagnosis("gpus together", "warning", "this torch has no NCCL, so one trains alone", remedy)]
    links = ", ".join(dict.fromkeys(machine.links)) or "what links them is not known"
    reach = "P2P" if all(cuda["reach"]) else "no P2P, so they speak through main memory"
    found = [Diagnosis("gpus together", "ok", f"{links}; {reach}; NCCL {cuda['nccl']}")]
    kinds = {f"{name}, {_gib(size)} GiB" for name, size in zip(cuda["names"], cuda["sizes"], strict=True)}
    if len(kinds) > 1:
        pace = "together they go at the pace of the slowest, and have the room of the smallest"
        found.append(Diagnosis("gpus differ", "ok", f"{' beside '.join(sorted(kinds))}: {pace}"))
    return found


def _gpu_memory(gpu: GpuReading) -> Diagnosis:
    """Return how much of the card's memory is free, and who holds the rest."""
    free_bytes = gpu.total_bytes - gpu.used_bytes
    found = f"{_gib(free_bytes)} of {_gib(gpu.total_bytes)} GiB free"
    if gpu.processes:
        held = [
            f"{one.name} (pid {one.pid}{f', {_gib(one.used_bytes)} GiB' if one.used_bytes else ''})"
            for one in gpu.processes
        ]
        found += f"; in use by {', '.join(held)}"
    if free_bytes >= gpu.total_bytes * LOW_GPU_FREE_SHARE:
        return Diagnosis("gpu memory", "ok", found)
    return Diagnosis("gpu memory", "warning", found, "close what uses the card before training")


def _temperature(gpu: GpuReading, temperature_c: int) -> Diagnosis:
    """Return how warm the card is before it has anything to do."""
    if gpu.slowdown_c is None:
        return Diagnosis("gpu temperature", "ok", f"{temperature_c} °C")
    found = f"{temperature_c} °C, slows down from {gpu.slowdown_c} °C"
    if temperature_c < gpu.slowdown_c - NEAR_SLOWDOWN_C:
        return Diagnosis("gpu temperature", "ok", found)
    return Diagnosis("gpu temperature", "warning", found, "let air to the card: fans, dust, case")


def _disk(machine: Machine) -> list[Diagnosis]:
    """Return whether checkpoints and downloaded models have room."""
    remedies = {
        "current folder": "free some space, or point output_dir to a larger disk: checkpoints go there",
        "model cache": "free some space, or point HF_HOME to a larger disk: downloaded models go there",
    }
    return [
        Diagnosis(f"disk, {place}", "ok", f"{free_bytes / 1e9:.0f} GB free")
        if free_bytes >= LOW_DISK_BYTES
        else Diagnosis(f"disk, {place}", "warning", f"{free_bytes / 1e9:.1f} GB free", remedies[place])
        for place, free_bytes in machine.disk_free_bytes.items()
    ]


def _memory(machine: Machine) -> list[Diagnosis]:
    """Return whether main memory has room for a run whose weights are on a card, batches and data workers included."""
    memory = machine.main_memory
    if memory is None:
        return []
    found = f"{memory.in_words} available"
    if memory.available_bytes >= LOW_MEMORY_BYTES:
        return [Diagnosis("main memory", "ok", found)]
    remedy = f"a run takes about {_gib(USUAL_BYTES)} GiB, more with layers in main memory; "
    remedy += "raise the limit, or close other programs" if memory.is_limited else "close other programs"
    return [Diagnosis("main memory", "warning", found, remedy)]


def _shared_memory(machine: Machine) -> list[Diagnosis]:
    """Return whether the batches of the usual data workers have room on their way; a container has 64 MB for them."""
    free_bytes = machine.shared_memory_bytes
    if free_bytes is None:
        return []
    found = f"{free_bytes / 1e6:,.0f} MB free in {SHARED_MEMORY}"
    if free_bytes >= LOW_SHARED_BYTES:
        return [Diagnosis("shared memory", "ok", found)]
    remedy = f"{NUM_WORKERS} data workers take {LOW_SHARED_BYTES / 1e6:,.0f} MB with large photos, else a run has fewer"
    return [Diagnosis("shared memory", "warning", found, f"{remedy}: give the container more, --shm-size=2g")]


def _gib(amount_bytes: int) -> str:
    """Return bytes as GiB with one decimal."""
    return f"{amount_bytes / GIB:.1f}"
