"""What the NVIDIA driver says about a card, through NVML: works without torch, and when torch cannot use the card."""

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

PCIE = (
    (20, "PCIe, switches between them"),
    (40, "PCIe, one processor between them"),
    (10**9, "PCIe, two processors between them"),
)
"""Up to which of NVML's levels of topology (nvmlGpuTopologyLevel_t) two cards meet where."""


@dataclass(frozen=True)
class GpuProcess:
    """One process that holds memory of the card; bytes are None where the driver does not tell."""

    pid: int
    name: str
    used_bytes: int | None


@dataclass(frozen=True)
class GpuReading:
    """One look at one card; fields that its driver does not report are None."""

    name: str
    total_bytes: int
    used_bytes: int
    temperature_c: int | None
    slowdown_c: int | None
    """Temperature at which the card slows itself down."""
    driver: str
    cuda_version: str
    """Newest CUDA version that the driver runs, such as `12.8`."""
    processes: tuple[GpuProcess, ...]


def read_gpu(uuid: str) -> GpuReading | None:
    """Return a reading of the card with this UUID (`GPU-…`), or None where there is no NVML or no such card."""
    nvml = _nvml()
    if nvml is None:
        return None
    try:
        handle = _handle_by_uuid(nvml, uuid)
        return None if handle is None else _reading(nvml, handle)
    except nvml.NVMLError:
        return None


def visible_gpus() -> dict[str, GpuReading]:
    """Return readings of the cards that CUDA may see, by UUID; none where there is no NVML.

    `CUDA_VISIBLE_DEVICES` is followed. Without it, NVML's order (by bus address) can differ from CUDA's (fastest
    first) on machines with different cards; `CUDA_DEVICE_ORDER=PCI_BUS_ID` makes them equal.
    """
    nvml = _nvml()
    found: dict[str, GpuReading] = {}
    if nvml is None:
        return found
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = _handle(nvml, index)
            if handle is None:
                break
            found[_text(nvml.nvmlDeviceGetUUID(handle))] = _reading(nvml, handle)
    except nvml.NVMLError:
        pass  # CUDA sees nothing behind a device that is not there
    return found


def read_gpus(names: Sequence[str]) -> list[GpuReading]:
    """Return readings of cards by their names in CUDA_VISIBLE_DEVICES; of those that NVML does not know none."""
    nvml = _nvml()
    if nvml is None:
        return []
    try:
        handles = [
            nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal() else _handle_by_uuid(nvml, name)
            for name in names
        ]
        return [_reading(nvml, handle) for handle in handles if handle is not None]
    except nvml.NVMLError:
        return []


def read_links(uuids: Sequence[str]) -> tuple[str, ...]:
    """Return what links the first of these cards with each of the others; nothing where NVML does not tell."""
    nvml = _nvml()
    if nvml is None or len(uuids) < 2:
        return ()
    try:
        first, *others = (_handle_by_uuid(nvml, uuid) for uuid in uuids)
        return tuple(_link(nvml, first, other) for other in others)
    except nvml.NVMLError:
        return ()


def _link(nvml: Any, first: Any, other: Any) -> str:
    if nvml.nvmlDeviceGetP2PStatus(first, other, nvml.NVML_P2P_CAPS_INDEX_NVLINK) == nvml.NVML_P2P_STATUS_OK:
        return "NVLink"
    level = nvml.nvmlDeviceGetTopologyCommonAncestor(first, other)
    return next(name for most, name in PCIE if level <= most)


def has_driver() -> bool:
    """Return whether NVIDIA's driver is installed, with or without NVML: without it torch can use no GPU."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _nvml() -> ModuleType | None:
    """Return the module of nvidia-ml-py, ready, or None where it is not installed or finds no driver."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()  # never shut down: the second and later calls are free, starting again is not
    except pynvml.NVMLError:
        return None
    return pynvml


def _handle(nvml: Any, index: int) -> Any | None:
    """Return NVML's handle of CUDA device `index`, or None when CUDA is told to see no such device."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return nvml.nvmlDeviceGetHandleByIndex(index)
    names = [name.strip() for name in visible.split(",")]
    if index >= len(names) or not names[index]:
        return None
    if names[index].isdecimal():
        return nvml.nvmlDeviceGetHandleByIndex(int(names[index]))
    return _handle_by_uuid(nvml, names[index])


def _handle_by_uuid(nvml: Any, uuid: str) -> Any | None:
    """Return the handle of the card whose UUID starts with `uuid`: CUDA accepts shortened ones, NVML does not."""
    if uuid.startswith("MIG-"):
        return nvml.nvmlDeviceGetHandleByUUID(uuid)
    for position in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(position)
        if _text(nvml.nvmlDeviceGetUUID(handle)).startswith(uuid):
            return handle
    return None


def _reading(nvml: Any, handle: Any) -> GpuReading:
    """Return all that NVML tells about the card; name and memory must be there, the rest may be missing."""

    def optional(read: Callable[..., Any], *arguments: Any) -> Any | None:
        try:
            return read(*arguments)
        except nvml.NVMLError:
            return None

    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    cuda = optional(nvml.nvmlSystemGetCudaDriverVersion) or 0
    running = [
        *(optional(nvml.nvmlDeviceGetComputeRunningProcesses, handle) or ()),
        *(optional(nvml.nvmlDeviceGetGraphicsRunningProcesses, handle) or ()),
    ]
    by_pid = {process.pid: process for process in running}
    return GpuReading(
        name=_text(nvml.nvmlDeviceGetName(handle)),
        total_bytes=memory.total,
        used_bytes=memory.used,
        temperature_c=optional(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        slowdown_c=optional(nvml.nvmlDeviceGetTemperatureThreshold, handle, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
        driver=_text(optional(nvml.nvmlSystemGetDriverVersion) or "unknown"),
        cuda_version=f"{cuda // 1000}.{cuda % 1000 // 10}",
        processes=tuple(
            GpuProcess(
                pid=pid,
                name=os.path.basename(_text(optional(nvml.nvmlSystemGetProcessName, pid) or "unknown")),
                used_bytes=process.usedGpuMemory,
            )
            for pid, process in sorted(by_pid.items())
        ),
    )


def _text(value: str | bytes) -> str:
    """Return NVML's text as str: older nvidia-ml-py returns bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
