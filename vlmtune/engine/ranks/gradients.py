"""The one sum of a step: the gradients of all processes."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

BUCKET_BYTES = 256 * 2**20
"""Adapters fit into one; where all weights learn, there is no second copy of all their gradients at a time."""


def sum_gradients(
    parameters: Sequence[nn.Parameter],
    total: Callable[[list[float]], list[float]],
    add_up: Callable[[Tensor], None],
) -> None:
    """Replace the gradients by the sums of all processes', in one flat tensor (of many gradients in several).

    One that only others have, as the tower's in a step of texts here, counts as zeros; one that nobody has stays None,
    for an optimizer moves what has a gradient of zeros.

    Args:
        total: list of numbers -> their sums over all processes.
        add_up: replaces a tensor by the sum of all processes'.
    """
    holders = total([float(parameter.grad is not None) for parameter in parameters])
    learning = [parameter for parameter, held_by in zip(parameters, holders, strict=True) if held_by]
    for bucket in _buckets(learning):
        _sum_bucket(bucket, add_up)


def _sum_bucket(parameters: list[nn.Parameter], add_up: Callable[[Tensor], None]) -> None:
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.reshape(-1) for parameter in parameters])
    add_up(flat)
    for parameter, summed in zip(parameters, flat.split([one.numel() for one in parameters]), strict=True):
        parameter.grad.copy_(summed.view_as(parameter))


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield them in their order, as many at a time as BUCKET_BYTES hold."""
    bucket: list[nn.Parameter] = []
    held_bytes = 0
    for parameter in parameters:
        if bucket and held_bytes + parameter.nbytes > BUCKET_BYTES:
            yield bucket
            bucket, held_bytes = [], 0
        bucket.append(parameter)
        held_bytes += parameter.nbytes
    if bucket:
        yield bucket
