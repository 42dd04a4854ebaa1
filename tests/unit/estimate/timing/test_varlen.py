"""Attention of a pack's rows: the blocks that its kernels give each row, counted by hand."""

from math import prod

import pytest
import torch

from vlmtune.estimate.timing.varlen import varlen, varlen_backward


def heads(tokens: int, number: int, size: int = 128) -> torch.Tensor:
    return torch.empty(tokens, number, size, dtype=torch.bfloat16, device="meta")


@pytest.mark.parametrize(
    ("lengths", "size", "is_causal", "pieces_and_blocks", "block"),
    [
        ((128,), 128, False, (1, 2), (128 * 64, 128)),
        ((300,), 128, False, (3, 3 * 5), (128 * 64, 128)),
        ((300,), 128, True, (3, 2 + 4 + 5 + 2 + 2 + 1), (128 * 64, 128)),  # two of each piece are cut, of the last one
        ((300,), 64, True, (3, 1 + 2 + 3 + 3), (128 * 128, 64)),
        ((64,) * 10, 80, False, (10, 10), (128 * 64, 96)),
        ((1, 300), 72, False, (4, 1 + 3 * 5), (128 * 64, 96)),
    ],
)
def test_each_row_has_pieces_and_blocks_of_its_own(lengths, size, is_causal, pieces_and_blocks, block):
    starts, tokens = torch.tensor([0, *lengths]).cumsum(0), sum(lengths)
    (kernel,) = varlen(heads(tokens, 4, size), heads(tokens, 4, size), starts, is_causal, 100)
    assert kernel.sizes == (*(4 * number for number in pieces_and_blocks), *block)
    assert (kernel.kind, kernel.bytes) == ("varlen attention", 100)
    assert kernel.flops == 4 * prod((4 * pieces_and_blocks[1], *block))


def test_the_way_back_goes_through_later_queries_and_passes_over_sums():
    starts, query = torch.tensor([0, 300]), heads(300, 8)
    first, kernel, last, *shared = varlen_backward(query, heads(300, 2), starts, True, 100)
    blocks = 5 + 3 + 1 + 2 + 2 + 1
    assert kernel.sizes == (8 * 3, 8 * blocks, 128 * 64, 128) and kernel.flops == 10 * 8 * blocks * 128 * 64 * 128
    assert (first.bytes, last.bytes) == (8 * query.numel(), 6 * query.numel())
    assert [one.kind for one in shared] == ["pass", "pass"]
    assert len(varlen_backward(query, query, starts, True, 100)) == 3
