"""Where the tensors of a weightless computation are: floats on the meta device, whole numbers real on the CPU.

Models decide by the values of whole numbers (image grids, window indices, masks), so these are computed. An operation
that meets both kinds runs on meta, as on a GPU it would run where the weights are.

Main memory is a third place: floats that are really there are on the CPU too, and are told from whole numbers of the
card by their storages. Those that nobody reads have the memory of one number.
"""

import weakref

import torch
from torch import Tensor

from vlmtune.compat import torch as borrowed
from vlmtune.estimate.simulate.outputs import tensors_in

aten = torch.ops.aten
storage_address = borrowed.STORAGE_ADDRESS.read
TO_COPY = borrowed.TO_COPY.get().default
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


def placed(operation, args: tuple, kwargs: dict, tensors: list[Tensor]) -> tuple[tuple, dict]:
    """Return arguments that go together: floats of a weightless computation on meta, whole numbers on the CPU.

    `tensors` are those of both.
    """
    if operation is TO_COPY:
        return args, _copy_target(args[0], kwargs)
    if operation in FACTORIES:
        return args, _factory_target(operation, args, kwargs, tensors)
    if len({tensor.is_meta for tensor in tensors}) < 2:
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
    # From meta there is nothing to bring to another device; what is to go there keeps the values it may be asked for.
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
    # Models make positions and masks on their weights' device, which is meta, and then decide by the values.
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
    """Return arguments with the real tensors in them taken to meta; single numbers may stay, as torch lets them."""
    if isinstance(value, Tensor):
        return value if value.is_meta or value.dim() == 0 else value.to("meta")
    if isinstance(value, tuple | list):
        return type(value)(_on_meta(item) for item in value)
    if isinstance(value, dict):
        return {key: _on_meta(item) for key, item in value.items()}
    return value


class MainMemory:
    """The tensors of floats that are in main memory, where nothing of the card is taken for them."""

    def __init__(self) -> None:
        self._storages: dict[int, weakref.ref] = {}

    def add(self, tensor: Tensor) -> None:
        """Say that a tensor is there."""
        storage = tensor.untyped_storage()
        key = storage_address(storage)
        self._storages.setdefault(key, weakref.ref(storage, lambda _: self._storages.pop(key, None)))

    def holds(self, tensor: Tensor) -> bool:
        """Return whether a tensor is there."""
        return not tensor.is_meta and storage_address(tensor.untyped_storage()) in self._storages

    def takes_part(self, operation, kwargs: dict, tensors: list[Tensor]) -> bool:
        """Return whether an operation makes something there, or is given something that is there."""
        if operation is aten.empty.memory_format:
            return bool(kwargs.get("pin_memory")) and kwargs["dtype"] not in WHOLE
        return bool(self._storages) and any(map(self.holds, tensors))

    def run(self, operation, args: tuple, kwargs: dict) -> tuple[object, bool]:
        """Return what an operation makes, and whether that is on the card: only what is copied there is."""
        if operation is TO_COPY and kwargs.get("device") is not None:
            return operation(*args, **kwargs), True
        out = self._made(operation, args, kwargs)
        if is_there := operation is not aten.copy_.default or self.holds(args[0]):
            for tensor in tensors_in(out):
                self.add(tensor)
        return out, not is_there

    def _made(self, operation, args: tuple, kwargs: dict):
        if operation is aten.empty.memory_format:
            return torch.zeros((), dtype=kwargs["dtype"]).expand(args[0])
        without_values = operation is aten.copy_.default and any(tensor.is_meta for tensor in args[:2])
        return args[0] if without_values else operation(*args, **kwargs)
