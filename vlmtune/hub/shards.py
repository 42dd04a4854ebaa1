"""What a model's safetensors files hold, from their headers: a damaged download is found before it is loaded.

No torch here, and no weight is read.
"""

import math
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmtune.errors import VlmtuneError
from vlmtune.files import json_value
from vlmtune.reading import JSON_BYTES, open_regular, read_regular

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
NAME = re.compile(r"(?!\.)[ !-.0-~]{1,200}")
"""Of a file in the folder of a model."""
LENGTH_BYTES = 8
LARGEST_HEADER_BYTES = JSON_BYTES
"""The library takes 100 MB, which are 2 GB in memory; headers of a thousand shards are smaller together."""
DTYPE_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
DTYPE_BYTES |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    """As safetensors calls it: `BF16`, `U8`."""
    packed: Mapping[str, Path] | None = None
    """Of a weight with two numbers in a byte, whose `shape` is that of the numbers: it and its constants → file."""

    @property
    def num_numbers(self) -> int:
        """Numbers in the tensor."""
        return math.prod(self.shape)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a model folder by their names in its files.

    Raises:
        VlmtuneError: no safetensors, a shard missing, or a file that is cut off or damaged.
    """
    if (folder / SINGLE).is_file():
        return stored_in(folder / SINGLE)
    if not (folder / INDEX).is_file():
        raise _no_weights(folder)
    places = weight_map(folder / INDEX)
    files = sorted(set(places.values()))
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise VlmtuneError(
            f"{folder} lacks {len(missing)} of {len(files)} weight files that {INDEX} names: {missing[0]}",
            "download the model again",
        )
    tensors = {name: tensor for file in files for name, tensor in stored_in(folder / file).items()}
    lost = sorted(name for name, file in places.items() if name not in tensors or tensors[name].file.name != file)
    if lost:
        raise VlmtuneError(
            f"{folder / places[lost[0]]} lacks {lost[0]}, which {INDEX} names",
            "its files are of different downloads: download the model again",
        )
    return tensors


def stored_in(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a file by name, from its header; together they must be all of the file.

    Raises:
        VlmtuneError: there is no such file, or it is cut off or damaged.
    """
    header, data_bytes = _header(path)
    tensors, places = {}, []
    for name, entry in header.items():
        shape, place = _checked(path, name, entry)
        places.append((*place, name))
        tensors[name] = StoredTensor(path, shape, entry["dtype"])
    end = 0
    for start, stop, name in sorted(places):
        if start != end:
            raise _damaged(path, f"{name} does not begin where another tensor ends")
        end = stop
    if end != data_bytes:
        raise _damaged(path, f"it holds {data_bytes:,} bytes, its header says {end:,}")
    return tensors


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Return what the header says of each tensor, and the bytes behind it."""
    try:
        with open_regular(path) as file:
            num_bytes = os.fstat(file.fileno()).st_size - LENGTH_BYTES
            header_bytes = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if header_bytes > min(LARGEST_HEADER_BYTES, num_bytes):
                raise _damaged(path, "it is cut off, or no safetensors file")
            text = file.read(header_bytes)
    except FileNotFoundError:
        raise VlmtuneError(f"there is no {path}", "download the model, or train the adapter, again") from None
    try:
        header = json_value(text)
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not JSON")
    header.pop("__metadata__", None)
    return header, num_bytes - header_bytes


def weight_map(path: Path) -> dict[str, str]:
    """Return tensor name → file name of an index."""
    try:
        index = json_value(read_regular(path, JSON_BYTES))
        names = index["weight_map"]
        files, described = set(names.values()), isinstance(index.get("metadata", {}), dict)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise _damaged(path, "it has no weight_map") from None
    if not described or not files or not all(isinstance(file, str) and NAME.fullmatch(file) for file in files):
        raise _damaged(path, "it names no files of this folder")
    return names


def _checked(path: Path, name: str, entry: Any) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Return shape of one tensor, and where its bytes begin and end."""
    try:
        shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
        dtype_bytes = DTYPE_BYTES.get(entry["dtype"])
        numbers = (*shape, start, stop)
    except (TypeError, KeyError, ValueError):
        raise _damaged(path, f"its header does not say where {name} is") from None
    if not isinstance(entry["dtype"], str) or not all(type(number) is int and number >= 0 for number in numbers):
        raise _damaged(path, f"its header does not say where {name} is")
    if dtype_bytes is not None and math.prod(shape) * dtype_bytes != stop - start:
        raise _damaged(path, f"{name} has another size than its shape {list(shape)}")
    return shape, (start, stop)


def _damaged(path: Path, what: str) -> VlmtuneError:
    return VlmtuneError(f"{path} is damaged: {what}", "download the file again")


def _no_weights(folder: Path) -> VlmtuneError:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if not pickles:
        gguf = next(folder.glob("*.gguf"), None)
        made_of = f"{gguf.name} is already quantised: name the 16-bit model that it was made of" if gguf else None
        hint = made_of or "download the model again"
        return VlmtuneError(f"{folder} has no weights: neither {SINGLE} nor {INDEX}", hint)
    convert = f"python -m vlmtune.models.to_safetensors {shlex.quote(str(folder))}"
    return VlmtuneError(
        f"{folder} has its weights in {pickles[0]}, a pickle: opening one can run any program, so vlmtune does not",
        f"convert it to safetensors, which runs nothing of it: {convert}",
    )
