"""Tiny checkpoints in 4 bits, as transformers saves a model that bitsandbytes has packed."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

WEIGHTS = "model.safetensors"


def save_packed(
    source: Path,
    folder: Path,
    *,
    quant_type: str = "nf4",
    double_quant: bool = True,
    skip: tuple[str, ...] = ("lm_head",),
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write the checkpoint in `source` in 4 bits into `folder`, which is returned."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(skip),
    )
    model = AutoModelForImageTextToText.from_pretrained(
        source, quantization_config=quantization, dtype=dtype, device_map="cpu"
    )
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(source).save_pretrained(folder)
    return folder


def change_config(folder: Path, change: Callable[[dict], object]) -> None:
    """Let `change` edit the config.json of a checkpoint."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Let `change` edit the tensors of a checkpoint by their names in the file."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
