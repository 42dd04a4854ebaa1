"""The rows of one run."""

from collections.abc import Sequence
from dataclasses import dataclass

from vlmtune.data.types import Sample


@dataclass(frozen=True)
class RunData:
    """The usable rows of a run, and what was left out."""

    train: Sequence[Sample]
    val: Sequence[Sample]
    skipped: tuple[str, ...] = ()
    """`train.jsonl:12: problem` of each row that was skipped."""
    notes: tuple[str, ...] = ()
