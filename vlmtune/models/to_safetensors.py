"""Pickled weights → safetensors beside them, without running what a pickle can hold. For users:
`python -m vlmtune.models.to_safetensors FOLDER`.

Files are read with torch's `weights_only` loader, which makes tensors and refuses anything else; no model class and no
code of the checkpoint is needed, and one file is in memory at a time.
"""

import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from vlmtune.errors import VlmtuneError
from vlmtune.files import PARTIAL, write_json
from vlmtune.hub.shards import INDEX, PICKLES, SINGLE, weight_map
from vlmtune.printing import printable

PICKLE_INDEX = "pytorch_model.bin.index.json"


def convert(folder: str | Path) -> list[Path]:
    """Write the weights of a model folder as safetensors with the same names, and return the files.

    The pickles stay. Files get their names when all of them are whole.

    Raises:
        VlmtuneError: no pickles, one that holds more than tensors, or too little room on the disk.
    """
    folder = Path(folder)
    pickles = _pickles(folder)
    num_bytes = sum(path.stat().st_size for path in pickles)
    if shutil.disk_usage(folder).free < num_bytes:
        raise VlmtuneError(f"{folder} needs {num_bytes / 1e9:.1f} GB more room on its disk", "make room, or copy it")
    names = [_new_name(path, len(pickles)) for path in pickles]
    places: dict[str, str] = {}
    total_bytes = 0
    for path, name in zip(pickles, names, strict=True):
        tensors = _tensors(path)
        save_file(tensors, folder / (name + PARTIAL), metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
        total_bytes += sum(tensor.nbytes for tensor in tensors.values())
    for name in names:
        (folder / (name + PARTIAL)).replace(folder / name)
    if names != [SINGLE]:
        index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(places.items()))}
        write_json(folder / INDEX, index)
    return [folder / name for name in names]


def _pickles(folder: Path) -> list[Path]:
    if (folder / PICKLE_INDEX).is_file():
        pickles = [folder / name for name in sorted(set(weight_map(folder / PICKLE_INDEX).values()))]
    else:
        pickles = sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
    missing = [path for path in pickles if not path.is_file()]
    if missing or not pickles:
        raise VlmtuneError(f"{missing[0] if missing else folder}: no pickled weights there", "download the model again")
    return pickles


def _new_name(path: Path, num_files: int) -> str:
    if num_files == 1:
        return SINGLE
    return path.name.removeprefix("pytorch_").removesuffix(path.suffix) + ".safetensors"


def _tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one pickle, each with memory of its own, as safetensors wants them."""
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it is cut off"
        raise VlmtuneError(f"{path} is not opened: {reason}", "use another copy of the model") from None
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        raise VlmtuneError(f"{path} holds other things than tensors", "use another copy of the model")
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in values.items()}


if __name__ == "__main__":
    try:
        convert(sys.argv[1])
    except VlmtuneError as error:
        sys.exit(printable(f"error: {error}"))
