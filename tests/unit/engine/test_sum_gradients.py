"""The one sum of a step; the other process is made up."""

import pytest
import torch
from torch import nn

from vlmtune.engine.ranks import gradients
from vlmtune.engine.ranks.gradients import sum_gradients


class Other:
    """Another process: its gradients, None where it has none."""

    def __init__(self, grads: list) -> None:
        self.grads = grads
        self.sums = 0

    def total(self, values: list[float]) -> list[float]:
        self.given = [grad for value, grad in zip(values, self.grads, strict=True) if value or grad is not None]
        return [value + (grad is not None) for value, grad in zip(values, self.grads, strict=True)]

    def add_up(self, flat: torch.Tensor) -> None:
        self.sums += 1
        mine = []
        while sum(one.numel() for one in mine) < flat.numel():
            grad = self.given.pop(0)
            mine.append(torch.zeros(4) if grad is None else grad)
        flat += torch.cat(mine)


@pytest.fixture
def parameters():
    """Four of four numbers: the first two have gradients here."""
    found = [nn.Parameter(torch.zeros(2, 2)) for _ in range(4)]
    for number, parameter in enumerate(found[:2], 1):
        parameter.grad = torch.full((2, 2), float(number))
    return found


@pytest.mark.parametrize(("bucket_bytes", "sums"), [(2**20, 1), (32, 2), (1, 3)])
def test_gradients_of_all_are_added_up(parameters, monkeypatch, bucket_bytes, sums):
    monkeypatch.setattr(gradients, "BUCKET_BYTES", bucket_bytes)
    other = Other([torch.full((4,), 10.0), None, torch.full((4,), 30.0), None])
    before = parameters[0].grad
    sum_gradients(parameters, other.total, other.add_up)
    assert [parameter.grad is not None and parameter.grad.tolist()[0][0] for parameter in parameters] == [
        11.0,
        2.0,
        30.0,
        False,  # an optimizer would move what has a gradient of zeros
    ]
    assert other.sums == sums and parameters[0].grad is before
