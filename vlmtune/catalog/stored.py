"""What is known of each model of the catalogue without simulating it: estimates.jsonl, made by `make catalogue`.

No torch here: `vlmtune models list` answers from this. Peaks are those of a card of the preset's size; on another card
the same preset takes as much, but for what its architecture's cuBLAS keeps.
"""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from vlmtune.catalog import FOLDER
from vlmtune.files import parse_json

FILE = FOLDER / "estimates.jsonl"
IMAGE_SIZES_PX = (336, 448, 672, 1024)
"""Values of `data.image_size` whose image tokens are kept, each for a square picture of that side."""


@dataclass(frozen=True)
class Peak:
    """What a preset takes for the largest row that it allows."""

    method: str
    """`qlora`, `lora` or `full`."""
    reserved_bytes: int
    allocated_bytes: int
    load_bytes: int
    """The peak while the weights are loaded, which may be higher than that of training."""
    text_tokens: int
    image_tokens: int
    main_memory_bytes: int | None = None
    """What a run takes beside the card; None: estimated before that was."""
    rows_per_s: float | None = None
    """Predicted on the card that stands for the preset's size, if all rows are the largest; None: not predicted yet."""

    @property
    def most_bytes(self) -> int:
        """What must be free."""
        return max(self.reserved_bytes, self.load_bytes)


@dataclass(frozen=True)
class Measured:
    """A real training run with random weights at real size."""

    gpu: str
    method: str
    rank: int
    tokens: int
    """Of the longest row."""
    reserved_bytes: int
    allocated_bytes: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Stored:
    """One line of the file."""

    image_tokens: dict[int, int]
    """`data.image_size` -> tokens; empty where the model cannot be tuned."""
    peaks: dict[str, Peak]
    """By preset."""
    measured: tuple[Measured, ...]
    problem: str | None
    """Why the model cannot be tuned."""
    versions: dict[str, str]
    checked: str
    """The day on which it was estimated."""


def stored(model_id: str) -> Stored:
    """Return what is stored of a model of the catalogue."""
    return _all()[model_id]


def read_lines() -> dict[str, dict[str, Any]]:
    """Return the lines of the file by model."""
    if not FILE.exists():
        return {}
    lines = map(json.loads, FILE.read_text(encoding="utf-8").splitlines())
    return {line.pop("model"): line for line in lines}


@cache
def _all() -> dict[str, Stored]:
    return {model: parse_json(Stored, json.dumps(line)) for model, line in read_lines().items()}
