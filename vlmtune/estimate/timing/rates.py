"""What a kernel takes on a card: a start, and the longest of moving bytes, making numbers and multiplying matrices.

Peaks are the data sheet's, or `vlmtune calibrate`'s where it measured them. What of them kernels reach was measured on
an H200 (tests/gpu/measured/microbench.json, torch 2.11) and is taken for every card. No torch here.
"""

from dataclasses import dataclass
from math import ceil, inf

from vlmtune.hardware.cards import Card

ASSUMED_LAUNCH_S = 20e-6
"""From one launch to the next where nobody measured it: Python, autograd and the driver on a desktop's processor."""


@dataclass(frozen=True)
class Kind:
    """How fast kernels over numbers are."""

    start_s: float
    """From start to end where there is next to nothing to do."""
    bandwidth: float
    """The share of the card's that large ones reach."""
    work: float
    """fp32 operations that could be done in the time of one number, where instructions and not memory are the limit:
    indices to be worked out, formats to be changed."""


KINDS = {
    "pass": Kind(1.2e-6, 0.88, 45),
    "widen": Kind(1.2e-6, 0.85, 180),
    "strided": Kind(1.4e-6, 0.85, 160),
    "cat": Kind(2.0e-6, 0.8, 240),
    "reduce": Kind(2.5e-6, 0.85, 150),
    "gather": Kind(1.5e-6, 0.7, 80),
    "unpack": Kind(1.5e-6, 0.88, 74),
    "lists": Kind(14e-6, 0.7, 45),
    "optimizer": Kind(4.5e-6, 0.7, 45),
}
"""By `Kernel.kind`. Kernels over lists give each multiprocessor 65,536 numbers at a time, whoever is idle."""


@dataclass(frozen=True)
class Tile:
    """A piece of a product that one multiprocessor computes at a time."""

    rows: int
    columns: int
    share: float
    """Of the multiprocessor's peak that it reaches: small tiles load more for each number they compute."""


TENSOR_TILES = (
    Tile(256, 128, 0.83),
    Tile(192, 128, 0.78),
    Tile(128, 128, 0.70),
    Tile(128, 64, 0.60),
    Tile(64, 64, 0.50),
)
SIMT_TILES = (Tile(128, 128, 0.75), Tile(128, 32, 0.5), Tile(64, 32, 0.4))
SPLITS, LEAST_SPLIT = (1, 2, 4, 8), 256
"""In so many parts the inner dimension may be computed side by side, and added up; the least that a part has."""
DEPTH = 64
"""What a tile takes of the inner dimension at once."""
PRODUCT_START_S = 2.8e-6
PRODUCT_BANDWIDTH = 0.8
UNALIGNED_SHARE = 0.42
OLD_SHARE = 0.6
"""Of the peak of the data centre cards from Hopper on that kernels for Ampere's instructions reach."""

ATTENTION_BLOCK = 128
"""Queries, and keys, that a multiprocessor takes at a time."""


@dataclass(frozen=True)
class Attention:
    """How fast a pass of attention is."""

    start_s: float
    share: float
    """Of the peak that its products reach."""
    score_work: float
    """As `Kind.work`, of a score: its exponential."""


FORWARD, BACKWARD = Attention(5e-6, 0.6, 19), Attention(12e-6, 0.5, 48)
EFFICIENT_SHARE = 0.45
"""The same of the kernel that takes masks, whose scores are counted in."""


class Rates:
    """The rates of one card."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.launch_s = ASSUMED_LAUNCH_S
        self.bandwidth = card.bandwidth_gb_s * 1e9
        self.fp32 = card.fp32_tflops * 1e12
        self.tensor = card.bf16_tflops * 1e12
        self.old_share = OLD_SHARE if card.sm[0] in (9, 10) else 1.0

    def seconds(self, kernel) -> float:
        """Return what one launch takes on the card."""
        if kernel.kind == "product":
            return self._product(kernel)
        if kernel.kind.startswith("attention"):
            return self._attention(kernel, BACKWARD if kernel.kind.endswith("backward") else FORWARD)
        if kernel.kind == "bus":
            return kernel.bytes / (self.card.host_gb_s * 1e9 * 0.85)
        if kernel.kind == "copy":
            return kernel.bytes / self.bandwidth
        kind = KINDS[kernel.kind]
        return kind.start_s + max(
            kernel.bytes / (self.bandwidth * kind.bandwidth), kernel.numbers * kind.work / self.fp32
        )

    def _product(self, kernel) -> float:
        is_fp32 = kernel.format == "float32"
        peak = self.fp32 if is_fp32 else self.tensor
        tiles = SIMT_TILES if is_fp32 else TENSOR_TILES
        computing = min(self._tiled(kernel.sizes, tile, peak / self.card.num_sms) for tile in tiles)
        if kernel.old and not is_fp32:
            computing *= TENSOR_TILES[0].share / (UNALIGNED_SHARE * self.old_share)
        return PRODUCT_START_S + max(computing, kernel.bytes / (self.bandwidth * PRODUCT_BANDWIDTH))

    def _tiled(self, sizes: tuple[int, ...], tile: Tile, peak: float) -> float:
        """Return what a product takes in tiles of one shape, either way up; `peak` is that of one multiprocessor."""
        many, m, n, k = sizes
        least = inf
        for rows, columns in ((tile.rows, tile.columns), (tile.columns, tile.rows)):
            pieces = many * ceil(m / rows) * ceil(n / columns)
            for split in SPLITS:
                if split > 1 and k / split < LEAST_SPLIT:
                    break
                depth = ceil(k / split / DEPTH) * DEPTH
                one = 2 * rows * columns * depth / (peak * tile.share)
                added_up = 2 * split * many * m * n * 4 / self.bandwidth if split > 1 else 0
                least = min(least, _rounds(pieces * split / self.card.num_sms) * one + added_up)
        return least

    def _attention(self, kernel, kind: Attention) -> float:
        heads, queries, keys, size = kernel.sizes
        blocks = heads * ceil(queries / ATTENTION_BLOCK)
        idle = _rounds(blocks / self.card.num_sms) / (blocks / self.card.num_sms)
        share = EFFICIENT_SHARE if kernel.old else kind.share
        computing = kernel.flops / (self.tensor * share * (self.old_share if kernel.old else 1))
        scores = 0 if kernel.old else kernel.flops / (size * (10 if kind is BACKWARD else 4))
        busy = (computing + scores * kind.score_work / self.fp32) * idle * _filled(queries) * _filled(keys)
        return kind.start_s + max(busy, kernel.bytes / (self.bandwidth * PRODUCT_BANDWIDTH))


def _rounds(exact: float) -> float:
    """Return how often every multiprocessor is given a piece.

    Libraries choose among so many shapes that the last round, which few pieces fill, costs half of what it would with
    one shape.
    """
    return max(1.0, (exact + ceil(exact)) / 2)


def _filled(length: int) -> float:
    """Return by how much whole blocks are more than a length."""
    return ceil(length / ATTENTION_BLOCK) * ATTENTION_BLOCK / length
