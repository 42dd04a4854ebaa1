"""Layers in 4 bits: without storage as quantising would make them, and as files of a packed base hold them."""

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from safetensors import safe_open
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from vlmtune.compat import bitsandbytes as bnb
from vlmtune.compat import transformers as borrowed
from vlmtune.errors import VlmtuneError
from vlmtune.files import json_value
from vlmtune.hub.prequantised import STATE
from vlmtune.hub.shards import StoredTensor
from vlmtune.models.verify import names_in_memory

BLOCK, NESTED_BLOCK = 64, 256
"""Numbers that share a constant, and constants that share one: bitsandbytes' defaults."""
CODE, NESTED_CODE = 16, 256
"""Numbers that 4 and 8 bits stand for."""
BYTE = "U8"


def quantization_of(quant_type: str, double_quant: bool, unpacked: list[str], dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return how bitsandbytes packs a base; `unpacked` names what it leaves, as transformers reads such names."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=unpacked,
    )


def pack_nothing(model: PreTrainedModel, quantization: BitsAndBytesConfig) -> None:
    """Turn the linear layers of a model without storage into what quantising them would have made."""
    dtype = quantization.bnb_4bit_compute_dtype
    with torch.device("meta"), default_dtype(dtype):
        unpacked = quantization.llm_int8_skip_modules
        borrowed.REPLACE_WITH_BNB_LINEAR(model, modules_to_not_convert=unpacked, quantization_config=quantization)
        for module in model.modules():
            if isinstance(module, Linear4bit):
                _quantise_nothing(module, quantization)
    borrowed.IS_LOADED_IN_4BIT.write(model, True)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make tensors of `dtype` where none is given."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _quantise_nothing(module: Linear4bit, quantization: BitsAndBytesConfig) -> None:
    """Give a weightless layer the packed weight and the constants that quantising would have made."""

    def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    numbers = module.out_features * module.in_features
    blocks = -(-numbers // BLOCK)
    nested = quantization.bnb_4bit_use_double_quant
    constants = bnb.QUANT_STATE(
        absmax=empty(-(-blocks // NESTED_BLOCK), dtype=torch.float32),
        code=empty(NESTED_CODE, dtype=torch.float32),
        blocksize=NESTED_BLOCK,
        dtype=torch.float32,
    )
    state = bnb.QUANT_STATE(
        absmax=empty(blocks, dtype=torch.uint8 if nested else torch.float32),
        shape=torch.Size((module.out_features, module.in_features)),
        dtype=quantization.bnb_4bit_compute_dtype,
        blocksize=BLOCK,
        code=empty(CODE, dtype=torch.float32),
        quant_type=quantization.bnb_4bit_quant_type,
        offset=empty(dtype=torch.float32) if nested else None,
        state2=constants if nested else None,
    )
    module.weight = bnb.PARAMS_4BIT(
        empty((numbers + 1) // 2, 1, dtype=torch.uint8),
        requires_grad=False,
        quant_state=state,
        blocksize=BLOCK,
        compress_statistics=nested,
        quant_type=quantization.bnb_4bit_quant_type,
        bnb_quantized=True,
    )
    bnb.LAYER_STATE.write(module, state)
    bnb.COMPUTE_TYPE_IS_SET.write(module, True)


def forbid_packing(model: nn.Module) -> None:
    """Keep 4-bit weights in one format, so that evaluation and training compute the same.

    In eval mode bitsandbytes packs them for a coarser CPU kernel that has no gradient; training steps that follow an
    evaluation would silently learn from wrong gradients.
    """
    for module in model.modules():
        if bnb.AVX512_FOR_CPU.read_or_none(module) is not None:
            bnb.AVX512_FOR_CPU.write(module, False)


def misshapen(model: nn.Module) -> list[str]:
    """Return the 4-bit weights whose file had another shape: the loader compares shapes of plain weights only."""
    states = (
        (name, module, bnb.state_of(module.weight))
        for name, module in model.named_modules()
        if isinstance(module, Linear4bit)
    )
    return [
        f"{name}.weight"
        for name, module, state in states
        if state is not None and tuple(state.shape) != (module.out_features, module.in_features)
    ]


def unpacked_layers(model: PreTrainedModel, packed: Collection[str], never: tuple[str, ...], where: str) -> list[str]:
    """Return what of an unquantised model is not among the `packed` weights of its files, as transformers reads names.

    It reads each as the start of a path, as its end, or as an expression; hence one expression that allows no more.

    Raises:
        VlmtuneError: a packed layer of the files is no linear layer here, is taken apart while loading, or is one of
            those that are `never` computed in 4 bits (ends of paths).
    """
    found, converted = names_in_memory(model, packed)
    linear = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    paths = {name.removesuffix(".weight") for name in found}
    barred = {path for path in paths if path.endswith(never)}
    if strange := sorted({*converted, *(paths - linear), *barred}):
        raise VlmtuneError(
            f"{where} has {strange[0]} in 4 bits, which cannot be used: the installed transformers has no such layer, "
            "takes it apart, or needs its numbers in full",
            "name the 16-bit model that it was made of: vlmtune quantises it while loading",
        )
    rest = sorted(linear - paths)
    return [f"^(?:{'|'.join(map(re.escape, rest))})$"] if rest else []


def packed_weights(stored: Iterable[str]) -> dict[str, str]:
    """Return the packed weights among the tensors of files, and the tensor that says how each is packed."""
    return {f"{match['module']}.weight": name for name in stored if (match := STATE.match(name))}


def as_unpacked(stored: dict[str, StoredTensor], where: Path) -> dict[str, StoredTensor]:
    """Return the tensors of files as those of the model: a packed weight in its full shape, and no constants.

    Raises:
        VlmtuneError: constants are missing or of another size, or the blocks are.
    """
    states = packed_weights(stored)
    plain = {name: tensor for name, tensor in stored.items() if weight_of(name) not in states}
    packed = {}
    for weight, said in _read_states(states, stored).items():
        shape = tuple(said["shape"])
        if said["blocksize"] != BLOCK or said.get("nested_blocksize", NESTED_BLOCK) != NESTED_BLOCK:
            raise VlmtuneError(
                f"{where} has {weight} in blocks of {said['blocksize']} numbers: vlmtune reads blocks of {BLOCK}, "
                f"whose constants are packed by {NESTED_BLOCK}",
                "name the 16-bit model that it was made of: vlmtune quantises it while loading",
            )
        parts = _parts(weight, prod(shape), "nested_offset" in said)
        for name, expected in parts.items():
            if name not in stored or stored[name].num_numbers != expected or stored[weight].dtype != BYTE:
                raise VlmtuneError(
                    f"{where} is damaged: {name} is missing, or does not belong to 4 bits of shape {list(shape)}",
                    "download the model again",
                )
        packed[weight] = replace(stored[weight], shape=shape, packed={name: stored[name].file for name in parts})
    return plain | packed


def weight_of(name: str) -> str:
    """Return the weight that a tensor belongs to by its name: itself, or the one whose constants it holds."""
    weight, found, _ = name.partition(".weight.")
    return f"{weight}.weight" if found else name


def _read_states(states: dict[str, str], stored: dict[str, StoredTensor]) -> dict[str, dict[str, Any]]:
    """Return what the files say of each packed weight, each file opened once."""
    found = {}
    by_file = sorted(states.items(), key=lambda pair: stored[pair[1]].file)
    for path, pairs in groupby(by_file, key=lambda pair: stored[pair[1]].file):
        with safe_open(path, framework="pt") as file:
            for weight, name in pairs:
                found[weight] = _state(file.get_tensor(name).numpy().tobytes(), name, path)
    return found


def _state(text: bytes, name: str, path: Path) -> dict[str, Any]:
    """Return what a file says of a packed weight: at least its shape and its block."""
    try:
        said = dict(json_value(text))
        whole = [said["blocksize"], *said["shape"]]
    except (ValueError, TypeError, KeyError):
        whole = [None]
    if not all(type(number) is int and number > 0 for number in whole):
        raise VlmtuneError(f"{path} is damaged: {name} does not say what is packed", "download the model again")
    return said


def _parts(weight: str, numbers: int, nested: bool) -> dict[str, int]:
    """Return the tensors that hold a packed weight of so many numbers, and how many numbers each has."""
    blocks = -(-numbers // BLOCK)
    parts = {weight: (numbers + 1) // 2, f"{weight}.absmax": blocks, f"{weight}.quant_map": CODE}
    if nested:
        parts[f"{weight}.nested_absmax"] = -(-blocks // NESTED_BLOCK)
        parts[f"{weight}.nested_quant_map"] = NESTED_CODE
    return parts


class JoinedConstants(Protocol):
    """Knows the constants of several linear layers (models/speed/constants.py): their attribute `joined_constants`."""

    def state(self, linear: nn.Module) -> Any:
        """Return the state by which a linear layer's weight is unpacked."""


def unpacked_weight(linear: nn.Module, dtype: torch.dtype) -> Tensor:
    """Return the weight [O, I] of a linear layer, unpacked for this once where it is in 4 bits."""
    joined: JoinedConstants | None = getattr(linear, "joined_constants", None)
    state = bnb.state_of(linear.weight) if joined is None else joined.state(linear)
    return linear.weight if state is None else dequantize_4bit(linear.weight, state).to(dtype)


def unpack(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Turn a base that was loaded in 4 bits into the same in `dtype`, which can be saved under its files' names."""
    deserialize = borrowed.BNB_DESERIALIZE.get()

    def packs(conversion: Any) -> bool:
        operations = borrowed.CONVERTER_OPERATIONS.read_or_none(conversion) or ()
        return any(isinstance(operation, deserialize) for operation in operations)

    used = borrowed.USED_CONVERSIONS.read(model)
    model.dequantize(dtype)
    borrowed.USED_CONVERSIONS.write(model, [conversion for conversion in used if not packs(conversion)])


def give_format(model: PreTrainedModel, expected: PreTrainedModel, dtype: torch.dtype) -> None:
    """Take the numbers of a loaded base to the formats of the same base without storage.

    transformers leaves what lies beside packed weights in the format of the file, and packed weights would be unpacked
    into that of the model that they were made of.
    """
    tensors = dict(expected.named_parameters())
    for name, parameter in model.named_parameters():
        if (state := bnb.state_of(parameter)) is not None:
            state.dtype = dtype
        elif parameter.dtype != tensors[name].dtype:
            parameter.data = parameter.data.to(tensors[name].dtype)
