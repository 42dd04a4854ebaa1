"""Bases that were quantised once, kept in the user's cache as models in 4 bits: the next start reads a quarter.

A kept base is a folder that loads as a model in 4 bits does, named by what was asked for. It is written under another
name and renamed when it is whole. What it was made of stands in it, and is compared before it is used: a file on the
hub never changes under its commit; a local one is known by its size, its time and pieces of its content, because a
tuned copy may have size and time of the original, and to read all of it would take as long as to quantise it anew.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from vlmtune.errors import VlmtuneError
from vlmtune.files import cache_folder, parse_json, sync, write_json
from vlmtune.hub.download import size_text
from vlmtune.hub.shards import INDEX, stored_tensors
from vlmtune.levers.kept_base import WRITTEN_AT_ONCE_BYTES
from vlmtune.models.layers.shards import shards_of
from vlmtune.models.packed import weight_of
from vlmtune.models.streaming import read_parameter, stream_of
from vlmtune.plan.types import RunPlan
from vlmtune.runs.versions import library_versions

Load = Callable[[RunPlan], PreTrainedModel]
Parts = Collection[str] | None
Tell = Callable[[str], None]

KEPT = 3
"""Kept bases in the cache folder; those that were not used for longest go first."""
PARTIAL = "partial-"
ABANDONED_S = 15 * 60
"""A half-written one that was not written to for so long belongs to a process that was killed."""
MADE = "made.json"
"""Written last."""
PIECES, PIECE_BYTES = 64, 2**14
"""Of a file's content, spread over it: 1 MiB."""
DECIDING = ("bitsandbytes", "torch", "transformers")
"""They round, they add up the constants, and they name the tensors."""


@dataclass(frozen=True)
class Made:
    """What a kept base was made of and by."""

    source: dict[str, str]
    """The commit of a hub model, or file → digest of a local one."""
    versions: dict[str, str]
    card: str
    """Cards of other kinds may add up constants in another order."""
    files: dict[str, str]
    """Its own files → digest."""


def say(text: str) -> None:
    """Tell something beside what a command prints."""
    from vlmtune.console import SafeConsole

    SafeConsole(stderr=True, soft_wrap=True).print(text)


def load_kept(plan: RunPlan, parts: Parts, load: Load, tell: Tell) -> PreTrainedModel:
    """Return the base from the cache; where there is none that holds, `load` it, and keep it for the next time.

    A base of some `parts` is kept as such: a run whose images are encoded before never has the others.

    Raises:
        VlmtuneError: as `load` does; what is wrong with the cache alone is told, and nothing is lost.
    """
    base = _from_cache(plan, parts, load, tell)
    if base is None:
        base = load(plan)
        _keep(base, plan, _place(plan, parts), tell)
    return base


def _from_cache(plan: RunPlan, parts: Parts, load: Load, tell: Tell) -> PreTrainedModel | None:
    """Return the kept base; None where there is none, or one that does not hold, which is told."""
    folder = _place(plan, parts)
    if not folder.is_dir():
        return None
    why = _difference(folder, plan)
    if why is None:
        try:
            base = load(replace(plan, model=str(folder), revision=None, prequantised=True, cache_quantized=False))
        except VlmtuneError as error:
            why = error.message
            shutil.rmtree(folder, ignore_errors=True)  # its damage lies where `_difference` does not look
        else:
            tell(f"the base in 4 bits comes from {folder}")
            with suppress(OSError):  # a cache that cannot be written can be read
                os.utime(folder)
            return base
    tell(f"the base in 4 bits that is kept in {folder} is not used, and made anew: {why}")
    return None


def is_kept(plan: RunPlan, parts: Parts) -> bool:
    """Return whether the base of `plan` would be loaded from the cache."""
    folder = _place(plan, parts)
    return plan.cache_quantized and folder.is_dir() and _difference(folder, plan) is None


def _place(plan: RunPlan, parts: Parts) -> Path:
    packing = [plan.quant_type, plan.double_quant, sorted(plan.unquantized), plan.base_dtype, plan.device]
    wanted = [plan.model, sorted(parts or ()), *packing]
    return cache_folder() / "bases" / hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:32]


def _difference(folder: Path, plan: RunPlan) -> str | None:
    """Return why a kept base does not hold for this run; None where it does."""
    try:
        made = parse_json(Made, (folder / MADE).read_bytes())
        whole = {name: _digest(folder / name) for name in made.files} == made.files
    except (OSError, ValueError):
        whole = False
    if not whole:
        return "it is damaged"
    if made.source != _source(plan):
        return "it was made of other weights"
    now = _versions()
    if changed := [name for name in DECIDING if made.versions.get(name) != now[name]]:
        return f"it was made by {changed[0]} {made.versions.get(changed[0])}, and {now[changed[0]]} is installed"
    return None if made.card == _card(plan) else f"it was made on {made.card}"


def _source(plan: RunPlan) -> dict[str, str]:
    if plan.revision is not None:
        return {"commit": plan.revision}
    folder = Path(plan.model)
    files = {folder / "config.json", *(tensor.file for tensor in stored_tensors(folder).values())}
    return {file.name: f"{file.stat().st_mtime_ns} {_digest(file)}" for file in sorted(files)}


def _digest(path: Path) -> str:
    """Return the size of a file and the digest of pieces spread over it, the whole of a small one."""
    size_bytes = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for number in range(PIECES):
            file.seek(number * max(PIECE_BYTES, (size_bytes - PIECE_BYTES) // (PIECES - 1)))
            digest.update(file.read(PIECE_BYTES))
    return f"{size_bytes} {digest.hexdigest()}"


def _versions() -> dict[str, str]:
    versions = library_versions()
    return {name: versions[name] for name in DECIDING}


def _card(plan: RunPlan) -> str:
    """Return the name of the card at hand; the plan's device where there is none, as in an estimate for another."""
    return torch.cuda.get_device_name() if plan.device == "cuda" and torch.cuda.is_available() else plan.device


def _keep(base: PreTrainedModel, plan: RunPlan, folder: Path, tell: Tell) -> None:
    """Write the base for the next start, unless this process has not all of it, or no room, or no permission."""
    if shards_of(base):
        tell("the base in 4 bits is not kept: the GPUs share its layers")
        return
    tensors = _tensors(base)
    needed_bytes = sum(tensor.nbytes for tensor in tensors.values())
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _forget_old(folder.parent)
        free_bytes = shutil.disk_usage(folder.parent).free
        if needed_bytes > free_bytes:
            why = (
                f"{size_text(needed_bytes)} are needed on the disk of {folder.parent}, {size_text(free_bytes)} are free"
            )
            tell(f"the base in 4 bits is not kept: {why}")
            return
        tell(f"keeping the base in 4 bits for the next start: {size_text(needed_bytes)} in {folder}")
        _write(folder, base, tensors, plan)
    except (OSError, SafetensorError) as error:
        tell(f"the base in 4 bits is not kept: {error}")


def _tensors(base: PreTrainedModel) -> dict[str, Tensor]:
    """Return what a checkpoint has of a base: its tensors by name, of those that share all numbers the first one."""
    once = {name for name, _ in base.named_parameters()}
    again = {name for name, _ in base.named_parameters(remove_duplicate=False)} - once
    return {name: tensor for name, tensor in base.state_dict().items() if name not in again}


def _write(folder: Path, base: PreTrainedModel, tensors: dict[str, Tensor], plan: RunPlan) -> None:
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=folder.parent, ignore_cleanup_errors=True) as partial:
        made = Path(partial) / "made"
        made.mkdir()
        base.config.save_pretrained(made)
        _write_shards(made, tensors, base)
        digests = {file.name: _digest(file) for file in sorted(made.iterdir())}
        write_json(made / MADE, vars(Made(_source(plan), _versions(), _card(plan), digests)))
        sync(made)
        try:
            made.rename(folder)
        except OSError:  # another run was quicker, or one that does not hold is in the way
            if _difference(folder, plan) is not None:
                folder.rename(Path(partial) / "old")
                made.rename(folder)
        sync(folder.parent)


def _write_shards(folder: Path, tensors: dict[str, Tensor], base: PreTrainedModel) -> None:
    """Write safetensors files and their index; what lies on a card comes to main memory one file at a time."""
    shards = _shards(tensors)
    files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for file, names in zip(files, shards, strict=True):
        save_file({name: _own_numbers(name, tensors[name], base) for name in names}, folder / file, {"format": "pt"})
        sync(folder / file)
    places = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    write_json(folder / INDEX, {"metadata": {}, "weight_map": places})


def _shards(tensors: dict[str, Tensor]) -> list[list[str]]:
    """Return the names of the tensors of each file.

    The library's own function counts memory that tensors share once: that of all streamed layers is shared.
    """
    shards, size_bytes = [[]], 0
    for name, tensor in tensors.items():
        if shards[-1] and size_bytes + tensor.nbytes > WRITTEN_AT_ONCE_BYTES:
            shards.append([])
            size_bytes = 0
        shards[-1].append(name)
        size_bytes += tensor.nbytes
    return shards


def _own_numbers(name: str, tensor: Tensor, base: PreTrainedModel) -> Tensor:
    """Return a tensor in main memory; one of a streamed layer has to come to its place on the card first."""
    if stream_of(base):
        owner = base.get_parameter_or_buffer(weight_of(name))
        if isinstance(owner, nn.Parameter):
            read_parameter(base, owner)
    return tensor.detach().to("cpu", copy=True).contiguous()


def _forget_old(bases: Path) -> None:
    """Remove what killed processes have left, and all kept bases but the newest."""
    half_made = [folder for folder in bases.iterdir() if folder.name.startswith(PARTIAL)]
    whole = sorted(set(bases.iterdir()) - set(half_made), key=_unused_s)
    for folder in (*(folder for folder in half_made if _unused_s(folder) > ABANDONED_S), *whole[KEPT - 1 :]):
        shutil.rmtree(folder, ignore_errors=True)


def _unused_s(folder: Path) -> float:
    """Return the seconds since something in a folder was written, or it was used."""
    times = [time.time()]
    with suppress(FileNotFoundError):  # another run may remove it at this moment
        times = [path.stat().st_mtime for path in _all(folder)]
    return time.time() - max(times)


def _all(folder: Path) -> Iterator[Path]:
    yield folder
    yield from folder.rglob("*")
