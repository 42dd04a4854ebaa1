"""What a kernel takes on a card: the longer of computing and moving, on as many multiprocessors as it occupies.

Peaks are the data sheet's, or `vlmtune calibrate`'s where it measured them. The shares of them that kernels reach were
measured on an H100 (tests/gpu/measured/microbench.json) and are taken for every card. No torch here.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, inf

from vlmtune.hardware.cards import Card

START_S = 1.2e-6
"""From the start of a kernel to its end where it has next to nothing to do."""
BANDWIDTH_SHARES = {"pass": 0.88, "strided": 0.75, "reduce": 0.75, "gather": 0.6, "unpack": 0.85, "copy": 0.85, "optimizer": 0.7}
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


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
SPLITS = (1, 2, 4, 8)
"""In so many parts the inner dimension may be computed side by side, and added up."""
UNALIGNED_SHARE = 0.25
PRODUCT_START_S = 3.8e-6


class Rates:
    """The rates of one card."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.bandwidth = card.bandwidth_gb_s * 1e9
        self.peaks = {"bfloat16": card.bf16_tflops * 1e12, "float16": card.bf16_tflops * 1e12, "float32": card.fp32_tflops * 1e12}

    def seconds(self, kernel) -> float:
        """Return what one launch takes on the card."""
        if kernel.kind in ("product", "convolution"):
            return self._product(kernel)
        if kernel.kind.startswith("attention"):
            return self._attention(kernel)
        if kernel.kind == "bus":
            return kernel.bytes / (self.card.host_gb_s * 1e9 * 0.85)
        return START_S + kernel.bytes / (self.bandwidth * BANDWIDTH_SHARES[kernel.kind])

    def _product(self, kernel) -> float:
        many, m, n, k = kernel.sizes
        tiles = SIMT_TILES if kernel.format == "float32" else TENSOR_TILES
        peak = self.peaks[kernel.format] / self.card.num_sms
        best = inf
        for tile in tiles:
            for rows, columns in {(tile.rows, tile.columns), (tile.columns, tile.rows)}:
                pieces = many * ceil(m / rows) * ceil(n / columns)
                for split in SPLITS:
                    if split > 1 and k / split < 256:
                        break
                    waves = _waves(pieces * split / self.card.num_sms)
                    one = 2 * rows * columns * ceil(k / split / 64) * 64 / (peak * tile.share)
                    extra = 2 * split * many * m * n * 4 / self.bandwidth if split > 1 else 0
                    best = min(best, waves * one + extra)
        if not kernel.aligned:
            best = best * TENSOR_TILES[0].share / UNALIGNED_SHARE
        moving = kernel.bytes / (self.bandwidth * 0.8)
        return PRODUCT_START_S + max(best, moving)

    def _attention(self, kernel) -> float:
        heads, queries, keys, size = kernel.sizes
        back = kernel.kind == "attention backward"
        share = 0.4 if back else 0.5
        start = 12e-6 if back else 5e-6
        return start + max(kernel.flops / (self.peaks[kernel.format] * share), kernel.bytes / (self.bandwidth * 0.8))


def _waves(exact: float) -> float:
    """Return how often every multiprocessor is given a piece: libraries choose among so many shapes that the last
    round, which few pieces fill, costs half of what it would with one."""
    return max(1.0, (exact + ceil(exact)) / 2)
