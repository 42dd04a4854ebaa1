"""What a kernel takes on a card: a start, and the longest of moving bytes, making numbers and multiplying matrices.

Peaks are the data sheet's, or `vlmtune calibrate`'s where it measured them. What of them kernels reach was measured on
an H200, attention of packs on an H100 (tests/gpu/measured/microbench*.json, torch 2.11), and is taken for every card.
No torch here.
"""

from dataclasses import dataclass
from math import ceil, inf

from vlmtune.hardware.calibration import LARGE_COPY, LARGE_FP32_PRODUCT, LARGE_PASS, LARGE_PRODUCT
from vlmtune.hardware.cards import Card

FP32, FP32_BYTES = "float32", 4
ASSUMED_PLAIN_LAUNCH_S = 5e-6
"""From one launch to the next where nobody measured it, of those that torch makes by itself: autograd and the driver on
a desktop's processor."""
CALLED = ("product", "unpack", "ours", "varlen attention", "varlen attention backward", "optimizer")
CALLED_LAUNCHES = 6
"""Kernels that modules, Python's autograd functions and custom operations call, and how many plain launches the
processor takes for one: 24 runs on four H100s, whose launches took 39 to 132 µs in the mean, said 5.7."""


@dataclass(frozen=True)
class Kind:
    """How fast kernels over numbers are."""

    start_s: float
    """From start to end where there is next to nothing to do."""
    bandwidth: float
    """The share of the card's that large ones reach."""
    work: float
    """fp32 operations that 128 lanes could do in the time of one number, where instructions and not memory are the
    limit: indices to be worked out, formats to be changed."""


KINDS = {
    "pass": Kind(1.2e-6, LARGE_PASS, 45),
    "ours": Kind(1.2e-6, LARGE_PASS, 45),
    "widen": Kind(1.2e-6, 0.85, 180),
    "strided": Kind(1.4e-6, 0.85, 160),
    "cat": Kind(2.0e-6, 0.8, 240),
    "reduce": Kind(2.5e-6, 0.85, 150),
    "gather": Kind(1.5e-6, 0.7, 80),
    "unpack": Kind(1.5e-6, 0.88, 74),
    "transposed": Kind(1.4e-6, 0.85, 450),
    "bicubic": Kind(1.5e-6, 0.7, 2500),
    "bicubic backward": Kind(1.5e-6, 0.7, 1050),
    "depthwise": Kind(1.5e-6, 0.7, 36.5),
    "solve": Kind(60e-6, 0.7, 150),
    "graph": Kind(0.0, 1.0, 0),
    "lists": Kind(14e-6, 0.7, 45),
    "optimizer": Kind(4.5e-6, 0.7, 1850),
}
"""By `Kernel.kind`. Kernels over lists give each multiprocessor 65,536 numbers at a time, whoever is idle; a system of
64 equations is solved row after row. What is transposed is read along one dimension and written along another: the
numbers that a warp takes lie in as many lines of memory. A picture is stretched by as few multiprocessors as it has
blocks: 29 ms for the 5,760 channels of Qwen-VL-Chat's tables, on one, each of a number's 16 places in another line;
backward reads one place. Of depthwise convolutions each tap of a window counts as a number, 18 instructions of torch's
kernel: two numbers are loaded, widened and multiplied, and their places worked out. The optimizer looks for the nearest
of 256 values for both states of each number: full tuning of 1.5 billion took 44 ms on an H100. A CUDA graph takes what
its kernels take, which are counted beside it."""


@dataclass(frozen=True)
class Tile:
    """A piece of a product that one multiprocessor computes at a time."""

    rows: int
    columns: int
    share: float
    """Of the multiprocessor's peak that it reaches: small tiles load more for each number they compute."""


TENSOR_TILES = (
    Tile(256, 128, LARGE_PRODUCT),
    Tile(192, 128, 0.78),
    Tile(128, 128, 0.70),
    Tile(128, 64, 0.60),
    Tile(64, 64, 0.50),
)
SIMT_TILES = (Tile(128, 128, LARGE_FP32_PRODUCT), Tile(128, 32, 0.5), Tile(64, 32, 0.4))
SPLITS = (1, 2, 4, 8)
"""In so many parts the inner dimension may be computed side by side, and added up."""
LEAST_SPLIT, LEAST_SIMT_SPLIT = 1500, 256
"""What each part has of it at least; with tensor cores a kernel of its own adds them up, without the same one does."""
DEPTH = 64
"""What a tile takes of the inner dimension at once."""
PRODUCT_START_S, SPLIT_S = 2.8e-6, 1.9e-6
PRODUCT_BANDWIDTH = 0.8
UNALIGNED_SHARE = 0.42
OLD_SHARE = 0.6
"""Of the peak of the data centre cards from Hopper on that kernels for Ampere's instructions reach."""


@dataclass(frozen=True)
class Attention:
    """How fast a pass of attention is."""

    start_s: float
    share: float
    """Of the peak that its products reach."""
    score_work: float = 0
    """As `Kind.work`, of a score: its exponential. 0 where the share has it in."""
    block: int = 128
    """Queries, and keys, that a multiprocessor takes at a time."""
    start_blocks: float = 0
    """Of varlen attention: what a piece takes to begin and end, in blocks."""
    pieces_at_once: int = 1
    """Of varlen attention: those that a multiprocessor works at."""


FORWARD, BACKWARD = Attention(5e-6, 0.6, 19), Attention(12e-6, 0.5, 48)
VARLEN_FORWARD, VARLEN_BACKWARD = (
    Attention(5e-6, 0.95, 19, start_blocks=2.75, pieces_at_once=2),
    Attention(7e-6, 0.78, 48),
)
MASKED_FORWARD, MASKED_BACKWARD = Attention(5e-6, 0.45), Attention(12e-6, 0.45, block=64)
"""Measured of cuDNN's kernels, whose backward pass takes 64 queries and keys at a time, as its name says."""
EFFICIENT_FORWARD, EFFICIENT_BACKWARD = Attention(5e-6, 0.27), Attention(12e-6, 0.33, block=64)
"""Of the memory-efficient kernel, which computes what cuDNN does not, masks in fp32 and wide heads: it is slower."""
CUDNN_MAX_HEAD, EFFICIENT_MAX_HEAD = 256, 128
"""The widest heads that cuDNN takes, and those of which the memory-efficient kernel keeps its sums in registers
(cutlassB.h: its kernel for wider ones keeps them in memory)."""
FP32_PRODUCTS = 6
"""By how much its products take longer in fp32: it makes three of each in TF32, at half the rate of 16 bits."""
WIDE_WORK = 5.4
"""fp32 operations in the time of one floating-point operation of its backward pass with wider heads: its sums are read
and written again and again while the tensor cores wait, so that their rate does not matter."""


class Rates:
    """The rates of one card."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.bandwidth = card.bandwidth_gb_s * 1e9
        self.fp32 = card.fp32_tflops * 1e12
        # These have half as many lanes for fp32, and as many for all else.
        self.issued = self.fp32 * (2 if card.sm in ((7, 5), (8, 0)) else 1)
        self.tensor = card.bf16_tflops * 1e12
        # For these, and no others, torch takes cuDNN's attention first (sdp_utils.cpp).
        self.has_cudnn_attention = card.sm in ((9, 0), (10, 0))
        self.old_share = OLD_SHARE if card.sm[0] in (9, 10) else 1.0

    def seconds(self, kernel) -> float:
        """Return what one launch takes on the card."""
        if kernel.kind == "product":
            return self._product(kernel)
        if kernel.kind.startswith("varlen"):
            return self._varlen(kernel)
        if "attention" in kernel.kind:
            return self._attention(kernel)
        if kernel.kind == "bus":
            return kernel.bytes / (self.card.host_gb_s * 1e9 * LARGE_COPY)
        if kernel.kind == "copy":
            return kernel.bytes / self.bandwidth
        kind = KINDS[kernel.kind]
        issued = self.issued * (min(1, kernel.sizes[0] / self.card.num_sms) if kernel.kind.startswith("bicubic") else 1)
        return kind.start_s + max(kernel.bytes / (self.bandwidth * kind.bandwidth), kernel.numbers * kind.work / issued)

    def launches(self, kernel) -> int:
        """Return how many kernels one is on the card: a product in parts is added up by another."""
        return 1 + (kernel.kind == "product" and kernel.format != FP32 and self._in_tiles(kernel)[1] > 1)

    def plain_launches(self, kernel) -> int:
        """Return what one is to the processor, in launches that torch makes by itself."""
        return self.launches(kernel) + (CALLED_LAUNCHES - 1 if kernel.kind in CALLED else 0)

    def _product(self, kernel) -> float:
        computing, split = self._in_tiles(kernel)
        if kernel.old and kernel.format != FP32:
            computing *= LARGE_PRODUCT / (UNALIGNED_SHARE * self.old_share)
        many, m, n, _ = kernel.sizes
        parts_bytes = 2 * split * many * m * n * FP32_BYTES if split > 1 else 0
        moving = (kernel.bytes + parts_bytes) / (self.bandwidth * PRODUCT_BANDWIDTH)
        return PRODUCT_START_S + max(computing, moving) + (SPLIT_S if split > 1 else 0)

    def _in_tiles(self, kernel) -> tuple[float, int]:
        """Return what a product takes in the tiles that suit it, and in how many parts of the inner dimension."""
        many, m, n, k = kernel.sizes
        is_fp32 = kernel.format == FP32
        peak = (self.fp32 if is_fp32 else self.tensor) / self.card.num_sms
        least = LEAST_SIMT_SPLIT if is_fp32 else LEAST_SPLIT
        splits = [split for split in SPLITS if split == 1 or k / split >= least]
        best = (inf, 1)
        for tile in SIMT_TILES if is_fp32 else TENSOR_TILES:
            for rows, columns in ((tile.rows, tile.columns), (tile.columns, tile.rows)):
                pieces = many * ceil(m / rows) * ceil(n / columns) / self.card.num_sms
                for split in splits:
                    depth = ceil(k / split / DEPTH) * DEPTH
                    one = 2 * rows * columns * depth / (peak * tile.share)
                    best = min(best, (_rounds(pieces * split) * one, split))
        return best

    def _attention(self, kernel) -> float:
        heads, queries, keys, size = kernel.sizes
        way, is_backward = self._way(kernel), kernel.kind.endswith("backward")
        blocks = heads * ceil(queries / way.block)
        idle = _rounds(blocks / self.card.num_sms) / (blocks / self.card.num_sms)
        computing = kernel.flops / (self.tensor * way.share * (self.old_share if kernel.old else 1))
        computing *= FP32_PRODUCTS if kernel.format == FP32 else 1
        if way is EFFICIENT_BACKWARD and size > EFFICIENT_MAX_HEAD:
            computing = kernel.flops * WIDE_WORK / self.issued
        scores = kernel.flops / (size * (10 if is_backward else 4))
        busy = computing + scores * way.score_work / self.issued
        busy *= idle * _filled(queries, way.block) * _filled(keys, way.block)
        return way.start_s + max(busy, kernel.bytes / (self.bandwidth * PRODUCT_BANDWIDTH))

    def _varlen(self, kernel) -> float:
        pieces, blocks, scores, _ = kernel.sizes
        way = VARLEN_BACKWARD if kernel.kind.endswith("backward") else VARLEN_FORWARD
        block_s = (
            kernel.flops / blocks / (self.tensor * way.share * self.old_share) + scores * way.score_work / self.issued
        )
        full = pieces / (self.card.num_sms * way.pieces_at_once)  # there is one shape: its last round counts in whole
        busy = (blocks + pieces * way.start_blocks) * block_s * ceil(full) / full
        return way.start_s + max(busy, kernel.bytes / (self.bandwidth * PRODUCT_BANDWIDTH))

    def _way(self, kernel) -> Attention:
        """Return how a pass of attention is computed."""
        widest = CUDNN_MAX_HEAD if self.has_cudnn_attention else EFFICIENT_MAX_HEAD
        if not kernel.kind.startswith("masked"):
            ways = FORWARD, BACKWARD
        elif kernel.format == FP32 or kernel.sizes[-1] > widest:
            ways = EFFICIENT_FORWARD, EFFICIENT_BACKWARD
        else:
            ways = MASKED_FORWARD, MASKED_BACKWARD
        return ways[kernel.kind.endswith("backward")]


def _rounds(exact: float) -> float:
    """Return how often every multiprocessor is given a piece.

    Libraries choose among so many shapes that the last round, which few pieces fill, costs half of what it would with
    one shape.
    """
    return max(1.0, (exact + ceil(exact)) / 2)


def _filled(length: int, block: int) -> float:
    """Return by how much whole blocks are more than a length."""
    return ceil(length / block) * block / length
