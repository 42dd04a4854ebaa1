"""What a model's safetensors files hold, from their headers: a damaged download is found before it is loaded.

No torch here, and no weight is read.
"""

import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmtune.errors import VlmtuneError
from vlmtune.reading import JSON_BYTES, open_file, read_file

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
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
        return dict(_read_header(folder / SINGLE))
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
    tensors = dict(pair for file in files for pair in _read_header(folder / file))
    lost = sorted(name for name, file in places.items() if name not in tensors or tensors[name].file.name != file)
    if lost:
        raise VlmtuneError(
            f"{folder / places[lost[0]]} lacks {lost[0]}, which {INDEX} names",
            "its files are of different downloads: download the model again",
        )
    return tensors


def weight_map(path: Path) -> dict[str, str]:
    """Return tensor name → file name of an index."""
    try:
        index = json.loads(read_file(path, JSON_BYTES))
        names = index["weight_map"]
        files, described = set(names.values()), isinstance(index.get("metadata", {}), dict)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _damaged(path, "it has no weight_map") from None
    if not described or not files or not all(isinstance(file, str) and Path(file).name == file for file in files):
        raise _damaged(path, "it names no files of this folder")
    return names


def _read_header(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    """Yield name and place of each tensor; the sizes that the header gives must be that of the file."""
    with open_file(path) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        header_bytes = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if num_bytes < LENGTH_BYTES or header_bytes > min(LARGEST_HEADER_BYTES, num_bytes - LENGTH_BYTES):
            raise _damaged(path, "it is cut off, or no safetensors file")
        text = file.read(header_bytes)
    try:
        header = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError):
        raise _damaged(path, "its header is not JSON") from None
    header.pop("__metadata__", None)
    places = []
    for name, entry in header.items():
        shape, place = _checked(path, name, entry)
        places.append((*place, name))
        yield name, StoredTensor(path, shape, entry["dtype"])
    end = 0
    for start, stop, name in sorted(places):
        if start != end:
            raise _damaged(path, f"{name} does not begin where another tensor ends")
        end = stop
    expected = LENGTH_BYTES + header_bytes + end
    if expected != num_bytes:
        raise _damaged(path, f"it has {num_bytes:,} bytes, its header says {expected:,}")


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
