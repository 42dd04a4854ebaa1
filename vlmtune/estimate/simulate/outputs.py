"""What operations on meta tensors return, remembered: torch works out sizes in Python, anew for every layer."""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from vlmtune.compat import torch as borrowed

storage_address = borrowed.STORAGE_ADDRESS.read
META = torch.device("meta")
SEQUENCES = (tuple, list)
HOLDERS = (*SEQUENCES, dict)
REMEMBERED = {"TensorType", "IntType", "SymIntType"}
"""Kinds of results that sizes decide: attention tells its lengths beside its tensors."""


class Sizes(NamedTuple):
    """All that a tensor without storage has."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


class _HasValuesError(Exception):
    """A tensor has storage: results may depend on its values."""


class Outputs:
    """Runs operations; where one ran before on tensors of the same sizes, only its results are made."""

    def __init__(self) -> None:
        self._known: dict[tuple, Sizes | tuple[Sizes | int | None, ...]] = {}

    def of(self, operation, args: tuple, kwargs: dict):
        """Return `operation(*args, **kwargs)`."""
        if not _decided_by_sizes(operation):
            is_known = _changes_in_place(operation) and args[0].is_meta
            return args[0] if is_known else operation(*args, **kwargs)
        try:
            key = (operation, _described(args), _described(kwargs) if kwargs else ())
            if known := self._known.get(key):
                return _made(known)
        except _HasValuesError:
            return operation(*args, **kwargs)
        out = operation(*args, **kwargs)
        results = out if isinstance(out, tuple) else (out,)
        given = {storage_address(tensor.untyped_storage()) for tensor in tensors_in((args, kwargs))}
        # aten._unsafe_view and the like share memory with what they were given, unlike what they say of themselves.
        made = tensors_in(results)
        if all(one.is_meta and storage_address(one.untyped_storage()) not in given for one in made):
            self._known[key] = _sizes_of(out)
        return out


@cache
def _decided_by_sizes(operation) -> bool:
    """Return whether all results are tensors with memory of their own or lengths, by what the operation says."""
    schema = borrowed.OPERATION_SCHEMA.read(operation)
    return not schema.is_mutable and all(
        value.alias_info is None and value.type.kind() in REMEMBERED for value in schema.returns
    )


@cache
def _changes_in_place(operation) -> bool:
    """Return whether the result is the first argument as it lay, by torch's way to name such operations.

    Without storage nothing is left to do; torch's own functions would take milliseconds for it (`addmm_`).
    """
    schema = borrowed.OPERATION_SCHEMA.read(operation)
    is_so = schema.is_mutable and len(schema.returns) == 1 and str(operation).split(".")[1].endswith("_")
    return is_so and torch.Tag.inplace_view not in operation.tags


def _described(value):
    """Return all that decides the sizes of results: a float 1.0 makes another dtype than the whole number."""
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise _HasValuesError
        return value.shape, value.stride(), value.dtype
    if isinstance(value, SEQUENCES):
        return tuple([_described(item) for item in value])
    if isinstance(value, dict):
        return tuple([(name, _described(item)) for name, item in value.items()])
    return type(value), value


def _sizes_of(out: Tensor | tuple | int | None) -> Sizes | tuple | int | None:
    if isinstance(out, Tensor):
        return Sizes(out.shape, out.stride(), out.dtype)
    return tuple(map(_sizes_of, out)) if isinstance(out, tuple) else out


def _made(sizes: Sizes | tuple | int | None) -> Tensor | tuple | int | None:
    if isinstance(sizes, Sizes):
        return torch.empty_strided(sizes.shape, sizes.stride, dtype=sizes.dtype, device=META)
    return tuple(map(_made, sizes)) if isinstance(sizes, tuple) else sizes


def tensors_in(value) -> list[Tensor]:
    """Return the tensors in arguments or results of an operation. torch's own tree functions take far longer."""
    if isinstance(value, Tensor):
        return [value]
    found: list[Tensor] = []
    _collect(value, found)
    return found


def _collect(value, found: list[Tensor]) -> None:
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, SEQUENCES) else ():
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, HOLDERS):
            _collect(item, found)
