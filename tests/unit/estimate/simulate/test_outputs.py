"""Results of operations on meta tensors, made from remembered sizes."""

import pytest
import torch

from vlmtune.estimate.simulate.outputs import Outputs

aten = torch.ops.aten


class Counted:
    """An operation that tells how often it ran."""

    def __init__(self, operation):
        self.operation, self._schema, self.tags, self.runs = operation, operation._schema, operation.tags, 0

    def __str__(self):
        return str(self.operation)

    def __call__(self, *args, **kwargs):
        self.runs += 1
        return self.operation(*args, **kwargs)


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def twice(operation, *args, **kwargs) -> tuple[object, object, int]:
    """Return the results of running an operation twice, and how often it really ran."""
    outputs, counted = Outputs(), Counted(operation)
    return outputs.of(counted, args, kwargs), outputs.of(counted, args, kwargs), counted.runs


def facts(tensor: torch.Tensor | None):
    return tensor if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


@pytest.mark.parametrize(
    ("operation", "args"),
    [
        (aten.mm.default, (meta(3, 4), meta(5, 4).t())),
        (aten.add.Tensor, (meta(4, 3).t(), meta(3, 1))),
        (aten.mul.Tensor, (meta(2, dtype=torch.int64), 1.5)),
        (aten.native_layer_norm.default, (meta(2, 3), [3], meta(3), meta(3), 1e-5)),
        (aten.convolution_backward.default,
         (meta(1, 2, 4, 4), meta(1, 3, 4, 4), meta(2, 3, 1, 1), [2], [1, 1], [0, 0], [1, 1], False, [0, 0], 1,
          [False, True, True])),
    ],
    ids=lambda value: str(value) if hasattr(value, "_schema") else "",
)  # fmt: skip
def test_a_second_run_returns_new_tensors_like_the_first_ones(operation, args):
    first, second, runs = twice(operation, *args)
    pairs = list(zip(first, second, strict=True)) if isinstance(first, tuple) else [(first, second)]
    assert runs == 1
    assert all(facts(one) == facts(other) for one, other in pairs)
    storages = [tensor.untyped_storage()._cdata for pair in pairs for tensor in pair if tensor is not None]
    assert len(set(storages)) == len(storages)


@pytest.mark.parametrize("operation", [aten.view.default, aten._unsafe_view.default], ids=str)
def test_a_view_stays_a_view(operation):
    given = meta(4, 3)
    first, second, runs = twice(operation, given, [12])
    assert runs == 2
    assert first.untyped_storage()._cdata == second.untyped_storage()._cdata == given.untyped_storage()._cdata


@pytest.mark.parametrize(
    ("operation", "args"),
    [
        (aten.add_.Tensor, (torch.ones(4), torch.ones(4))),
        (aten.squeeze_.dim, (meta(1, 4), 0)),
        (aten._foreach_add_.List, ([meta(4)], [meta(4)])),
        (aten.nonzero.default, (torch.tensor([0, 1, 2]),)),
        (aten.arange.default, (3,)),
    ],
    ids=str,
)
def test_new_sizes_and_real_values_are_made_every_time(operation, args):
    first, second, runs = twice(operation, *args)
    assert runs == 2
    assert facts(first) == facts(second)


@pytest.mark.parametrize(
    ("operation", "args"),
    [
        (aten.add_.Tensor, (meta(4, 2).t(), meta(4))),
        (aten.addmm_.default, (meta(3, 5), meta(3, 4), meta(4, 5))),
        (aten.index_put_.default, (meta(4), [torch.tensor([1])], meta(1))),
    ],
    ids=str,
)
def test_what_is_changed_in_its_place_needs_no_run(operation, args):
    before = facts(args[0])
    first, second, runs = twice(operation, *args)
    assert first is second is args[0] and runs == 0
    assert facts(operation(*args)) == facts(args[0]) == before, "as torch itself leaves it"


def test_a_float_is_not_the_whole_number_that_equals_it():
    outputs, whole = Outputs(), meta(2, dtype=torch.int64)
    assert outputs.of(aten.mul.Tensor, (whole, 2), {}).dtype == torch.int64
    assert outputs.of(aten.mul.Tensor, (whole, 2.0), {}).dtype == torch.float32


def test_other_sizes_strides_and_dtypes_are_other_operations():
    outputs = Outputs()
    for given in (meta(2, 3), meta(3, 2), meta(3, 2).t(), meta(2, 3, dtype=torch.float32)):
        assert facts(outputs.of(aten.neg.default, (given,), {})) == facts(aten.neg.default(given))
