"""What graphs read and write: buffers at addresses of their own, for each shape of what a layer is called with.

Shapes: T tokens of a pack, R rows in it, H hidden size.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlmtune.models.attention.varlen import longest_of

MASK = "attention_mask"
ROWS_STEP = 8
"""Graphs know a multiple of so many rows of a pack."""


class Given(NamedTuple):
    """What a layer is called with beside hidden states, by name."""

    starts: Tensor
    """Where the rows of the pack begin, [1, 1, R + 1, 1]: its mask."""
    tensors: dict[str, tuple[Tensor, ...]]
    constants: tuple[tuple[str, Any], ...]


def given_of(keywords: dict[str, Any]) -> Given | None:
    """Return what graphs can be made of; None where a layer takes something else, or a mask of pairs of tokens."""
    starts, tensors, constants = keywords.get(MASK), {}, []
    if not isinstance(starts, Tensor) or starts.dtype != torch.int32:
        return None
    for name, value in keywords.items():
        parts = value if isinstance(value, tuple) else (value,)
        if name == MASK:
            continue
        if parts and all(isinstance(part, Tensor) for part in parts):
            tensors[name] = parts
        elif value is None or isinstance(value, bool | int | float | str):
            constants.append((name, value))
        else:
            return None
    return Given(starts, tensors, tuple(constants))


class Shape(NamedTuple):
    """What graphs depend on."""

    hidden: torch.Size
    dtype: torch.dtype
    starts: int
    """Where rows begin, and the last one ends; those that a pack lacks are empty."""
    longest: int
    """A bound of the longest row."""
    tensors: tuple
    constants: tuple[tuple[str, Any], ...]


class Bounds:
    """How many rows the packs had so far, and how long: graphs know no more, so that their shapes differ by T alone."""

    def __init__(self) -> None:
        self.rows = self.longest = 1

    def shape_of(self, x: Tensor, given: Given) -> Shape:
        """Return what the graphs of hidden states [1, T, H] depend on."""
        rows = given.starts.shape[2] - 1
        self.rows = max(self.rows, -(-rows // ROWS_STEP) * ROWS_STEP)
        self.longest = max(self.longest, 1 << (longest_of(given.starts) - 1).bit_length())  # the next power of two
        tensors = tuple((name, *((one.shape, one.dtype) for one in ones)) for name, ones in given.tensors.items())
        return Shape(x.shape, x.dtype, self.rows + 1, self.longest, tensors, given.constants)


class Buffers:
    """What graphs of one shape read and write: hidden states in `x`, gradients and results in `y`; what is given."""

    def __init__(self, shape: Shape, x: Tensor, y: Tensor, given: Given) -> None:
        self.x, self.y = x, y
        self.given = {name: tuple(torch.empty_like(one) for one in ones) for name, ones in given.tensors.items()}
        self.starts = given.starts.new_empty(1, 1, shape.starts, 1)
        self.starts.longest = shape.longest
        self._from: Given | None = None

    def fill(self, x: Tensor, given: Given) -> None:
        """Copy a layer's input; what is given to many layers is copied once."""
        self.x.copy_(x)
        if self._from is None or self._from.starts is not given.starts:
            rows = given.starts.shape[2]
            self.starts[:, :, :rows].copy_(given.starts)
            self.starts[:, :, rows:] = given.starts[:, :, -1:]  # no tokens in those
        for name, ones in given.tensors.items():
            if self._from is None or not _are_same(ones, self._from.tensors[name]):
                for own, one in zip(self.given[name], ones, strict=True):
                    own.copy_(one)
        self._from = given

    def keywords(self) -> dict[str, Any]:
        """Return what a layer is called with in place of what it was given."""
        return {MASK: self.starts} | {name: own if len(own) > 1 else own[0] for name, own in self.given.items()}

    def forget(self) -> None:
        """Let go of what was copied last."""
        self._from = None


def _are_same(ones: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(ones) == len(others) and all(one is other for one, other in zip(ones, others, strict=True))
