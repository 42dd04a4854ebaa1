"""What this machine offers to a training run. Light: everything that needs torch runs in one other process.

A library that is missing, broken or crashes on import is then a finding, instead of the end of the command that asks.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmtune.compat.bitsandbytes import NATIVE_LIBRARY, NATIVE_LIBRARY_ERROR
from vlmtune.hardware.main_memory import MainMemory, read_main_memory
from vlmtune.hardware.sensors import GpuReading, read_links, visible_gpus
from vlmtune.runs.versions import library_versions

PROBE_TIMEOUT_S = 180
SHARED_MEMORY = Path("/dev/shm")

# Prints one JSON line per part, so that a crash shows which part it was. Each part reports its own error.
PROBE = """
import json, sys

def part(name, read):
    try:
        found = read()
    except BaseException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        found = {"error": type(error).__name__ + (": " + lines[0] if lines else "")}
    print(json.dumps({"part": name, **found}), flush=True)

def read_torch():
    import torch
    return {"version": torch.__version__, "cuda": torch.version.cuda, "available": torch.cuda.is_available()}

def read_cuda():
    import torch
    if not torch.cuda.is_available():
        return {}
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    free, total = torch.cuda.mem_get_info(0)
    torch.ones(8, device="cuda").sum().item()
    names, uuids = [gpu.name for gpu in gpus], [str(gpu.uuid) for gpu in gpus]
    found = {"name": names[0], "uuid": uuids[0], "names": names, "free_bytes": free, "total_bytes": total}
    if len(gpus) < 2:
        return found
    from torch import distributed
    reach = [torch.cuda.can_device_access_peer(0, other) for other in range(1, len(gpus))]
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if distributed.is_nccl_available() else None
    sizes = [gpu.total_memory for gpu in gpus]
    return {**found, "uuids": uuids, "sizes": sizes, "reach": reach, "nccl": nccl}

def read_torchvision():
    import torchvision
    return {"version": torchvision.__version__}

def read_bitsandbytes():
    import bitsandbytes, torch
    failure = vars(LIBRARY).get("MESSAGE")
    if failure:
        raise ImportError(failure)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bitsandbytes.functional.quantize_4bit(torch.ones(64, 64, device=device), quant_type="nf4")
    return {"device": device}

part("torch", read_torch)
part("cuda", read_cuda)
part("torchvision", read_torchvision)
part("bitsandbytes", read_bitsandbytes)
""".replace("LIBRARY", NATIVE_LIBRARY.path).replace("MESSAGE", NATIVE_LIBRARY_ERROR.name)
PARTS = ("torch", "cuda", "torchvision", "bitsandbytes")


@dataclass(frozen=True)
class Machine:
    """What was found; None where it could not be read."""

    python: str
    versions: dict[str, str]
    windows: dict[str, str]
    """Supported versions by library, from vlmtune's own package metadata; empty when vlmtune is not installed."""
    probe: dict[str, dict[str, Any]]
    """What torch, cuda, torchvision and bitsandbytes said, by part; `error` in a part that failed."""
    gpu: GpuReading | None
    """The first that CUDA sees; NVML's first where torch cannot say which that is."""
    visible_devices: str | None
    disk_free_bytes: dict[str, int]
    main_memory: MainMemory | None
    shared_memory_bytes: int | None = None
    """Free in /dev/shm, through which the processes that read images give their batches; None where there is none."""
    links: tuple[str, ...] = ()
    """What links the first GPU with each of the others; empty where nobody tells."""


def read_machine() -> Machine:
    """Return what this machine offers; takes as long as importing torch."""
    gpus = visible_gpus()  # before the probe, whose own process holds GPU memory
    probe = run_probe([sys.executable, "-c", PROBE])
    return Machine(
        python=platform.python_version(),
        versions=library_versions(),
        windows=supported_windows(),
        probe=probe,
        gpu=gpus.get(f"GPU-{probe['cuda'].get('uuid')}") or next(iter(gpus.values()), None),
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        disk_free_bytes={"current folder": _disk_free(Path.cwd()), "model cache": _disk_free(_model_cache())},
        main_memory=read_main_memory(),
        shared_memory_bytes=shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None,
        links=read_links([f"GPU-{uuid}" for uuid in probe["cuda"].get("uuids", ())]),
    )


def run_probe(command: list[str]) -> dict[str, dict[str, Any]]:
    """Return what the probe process printed, by part; the part in which it died says so in `error`."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, errors="replace")
        output, ending = done.stdout, _ending(done.returncode)
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout.decode(errors="replace") if isinstance(expired.stdout, bytes) else expired.stdout or ""
        ending = f"no answer within {PROBE_TIMEOUT_S} s"
    except OSError as error:
        output, ending = "", f"cannot start Python: {error.strerror}"
    parts = {}
    for line in output.splitlines():
        if line.startswith('{"part": '):
            found = json.loads(line)
            parts[found.pop("part")] = found
    missing = [part for part in PARTS if part not in parts]
    if missing:
        parts[missing[0]] = {"error": ending}
        parts |= {part: {"error": "not tried, see above"} for part in missing[1:]}
    return parts


def supported_windows() -> dict[str, str]:
    """Return the supported versions by library, such as `>=5.17,<6`, from vlmtune's package metadata."""
    from importlib.metadata import PackageNotFoundError, metadata, requires

    try:
        from packaging.requirements import Requirement

        needed = [Requirement(text) for text in requires("vlmtune") or ()]
        windows = {"python": metadata("vlmtune")["Requires-Python"] or ""}
    except (ImportError, PackageNotFoundError):
        return {}
    for one in needed:
        if one.marker is None:
            windows[one.name] = ",".join(sorted(map(str, one.specifier), reverse=True))
    return windows


def _ending(return_code: int) -> str:
    """Return how a process that did not finish its work ended."""
    if return_code < 0:
        return f"crashed with signal {-return_code}"
    return f"ended early with exit code {return_code}"


def _model_cache() -> Path:
    """Return the folder that downloaded models go to, by Hugging Face's own rules."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "huggingface" / "hub"


def _disk_free(folder: Path) -> int:
    """Return the free bytes on the disk that `folder` is on, or will be on."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free
