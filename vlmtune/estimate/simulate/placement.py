"""Where an operation's tensors are: floats of a weightless computation on meta, whole numbers real, on the CPU."""

import torch
from torch import Tensor

from vlmtune.estimate.simulate.outputs import tensors_in

aten = torch.ops.aten
ARANGE = (aten.arange.default, aten.arange.start, aten.arange.start_step)
FACTORIES = {
    *ARANGE,
    aten.zeros.default,
    aten.ones.default,
    aten.full.default,
    aten.empty.memory_format,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.empty_like.default,
    aten.scalar_tensor.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_empty.default,
    aten.new_full.default,
}
WHOLE = {torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8, torch.bool}


def placed(operation, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Return arguments that go together: floats of a weightless computation on meta, whole numbers on the CPU."""
    tensors = [*tensors_in(args), *tensors_in(kwargs)]
    if operation is aten._to_copy.default:
        return args, _copy_target(args[0], kwargs)
    if operation in FACTORIES:
        return args, _factory_target(operation, args, kwargs, tensors)
    if all(tensor.is_meta for tensor in tensors) or not any(tensor.is_meta for tensor in tensors):
        return args, kwargs
    if operation is aten.index.Tensor:
        args = (args[0], _without_masks(args[1]))
    return _on_meta(args), _on_meta(kwargs)


def only_moves(tensor: Tensor, kwargs: dict) -> bool:
    """Return whether a tensor is taken from a weight's device to an input's or back: on a GPU those are one."""
    device = kwargs.get("device")
    same_format = kwargs.get("dtype") in (None, tensor.dtype)
    return same_format and device is not None and {torch.device(device).type, tensor.device.type} == {"meta", "cpu"}


def _copy_target(tensor: Tensor, kwargs: dict) -> dict:
    device = kwargs.get("device")
    dtype = kwargs.get("dtype") or tensor.dtype
    if tensor.device.type == "meta" and device is not None:
        kwargs["device"] = torch.device("meta")
    elif tensor.device.type == "cpu" and device is not None and torch.device(device).type == "meta" and dtype in WHOLE:
        kwargs["device"] = torch.device("cpu")
    return kwargs


def _factory_target(operation, args: tuple, kwargs: dict, tensors: list[Tensor]) -> dict:
    dtype = kwargs.get("dtype")
    if dtype is None and operation in ARANGE and not any(isinstance(value, float) for value in args):
        dtype = torch.int64
    if dtype is None and tensors:
        dtype = tensors[0].dtype
    if dtype in WHOLE and (kwargs.get("device") is not None or tensors):
        kwargs["device"] = torch.device("cpu")
    return kwargs


def _without_masks(indices: list) -> list:
    """Return index tensors in place of real boolean masks: meta cannot know how many of them are set."""
    plain = []
    for index in indices:
        is_mask = isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) and index.device.type == "cpu"
        plain += list(index.nonzero(as_tuple=True)) if is_mask else [index]
    return plain


def _on_meta(value):
    """Return arguments with the real tensors in them taken to meta; single numbers may stay."""
    if isinstance(value, Tensor):
        return value if value.is_meta or value.dim() == 0 else value.to("meta")
    if isinstance(value, tuple | list):
        return type(value)(_on_meta(item) for item in value)
    if isinstance(value, dict):
        return {key: _on_meta(item) for key, item in value.items()}
    return value
