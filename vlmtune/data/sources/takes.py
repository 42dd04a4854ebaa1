"""How often an epoch takes each row: what the weights of sources mean."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vlmtune.data.reading.data_files import ROWS_OF_FILE, DataFiles
from vlmtune.data.sources.shares import chance
from vlmtune.data.types import Sample, numbers_of

if TYPE_CHECKING:
    from vlmtune.plan.types import RunPlan


class Takes:
    """The rows of each epoch, as numbers that tell the takes of one row apart: `take * num_rows + row`.

    The rows of a source lie in a random order, and an epoch goes on in it where the last one ended: `weight` times as
    many rows as there are. So after any number of epochs each row of a source was taken as often as the others, or once
    more. The order follows from the seed, so a resumed run takes the same rows.
    """

    def __init__(self, samples: Sequence[Sample], files: DataFiles, seed: int) -> None:
        self.num_rows = len(samples)
        self._sources = [
            (sorted(rows, key=lambda row: chance(seed, row)), taken_rows(len(rows), files.sources[source].weight))
            for source, rows in _rows_of_sources(samples, files).items()
        ]

    def __len__(self) -> int:
        """Rows of an epoch."""
        return sum(num_taken for _, num_taken in self._sources)

    def of_epoch(self, epoch: int) -> Iterator[int]:
        """Yield the rows of an epoch, as numbers that tell the takes of one row apart."""
        for rows, num_taken in self._sources:
            for place in range(epoch * num_taken, (epoch + 1) * num_taken):
                take, inside = divmod(place, len(rows))
                yield take * self.num_rows + rows[inside]


def takes_of(samples: Sequence[Sample], files: DataFiles, plan: "RunPlan") -> Takes | None:
    """Return which rows an epoch takes; None where it takes each once, and each take of a row is the same."""
    return Takes(samples, files, plan.seed) if is_weighted(files) or plan.augment.is_on else None


def taken_rows(num_rows: int, weight: float) -> int:
    """Return how many rows of a source an epoch takes, at least one."""
    return max(1, round(weight * num_rows))


def rows_per_epoch(samples: Sequence[Sample], files: DataFiles) -> int:
    """Return how many rows an epoch takes of all sources."""
    if not is_weighted(files):
        return len(samples)
    by_source = _rows_of_sources(samples, files)
    return sum(taken_rows(len(rows), files.sources[source].weight) for source, rows in by_source.items())


def is_weighted(files: DataFiles) -> bool:
    """Return whether an epoch is anything but every row once."""
    return any(source.weight != 1 for source in files.sources)


def _rows_of_sources(samples: Sequence[Sample], files: DataFiles) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for row, number in enumerate(numbers_of(samples)):
        found.setdefault(files.files[number // ROWS_OF_FILE].source, []).append(row)
    return found
