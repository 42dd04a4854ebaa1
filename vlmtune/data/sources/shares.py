"""Which rows of the sources a run takes: at most so many, and a share of them held out.

What is chosen follows from the seed and a row's number alone: the same rows on every machine and at every start.
"""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from vlmtune.data.types import Rows, Sample, SamplesOnDisk, count, numbers_of
from vlmtune.errors import VlmtuneError


def limited(rows: Rows, max_samples: int | None, seed: int) -> Rows:
    """Return at most so many of the usable rows, chosen at random, in their order."""
    if max_samples is None or len(rows.samples) <= max_samples:
        return rows
    numbers = numbers_of(rows.samples)
    by_chance = sorted(range(len(numbers)), key=lambda row: chance(seed, numbers[row]))
    note = f"{max_samples:,} of {count(len(numbers), 'row')} are taken (data.max_samples)"
    return replace(rows, samples=rows_at(rows.samples, by_chance[:max_samples]), notes=(*rows.notes, note))


def split(samples: Sequence[Sample], fraction: float, seed: int) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """Return the rows to train on and the share of them that is held out, each in their order.

    Rows that share an image, as far as one name or the same embedded bytes say, are on one side.

    Raises:
        VlmtuneError: that leaves no row on one side.
    """
    groups = _groups(images_of(samples))
    numbers, wanted = numbers_of(samples), max(1, round(fraction * len(samples)))
    held_out: list[int] = []
    for group in sorted(groups, key=lambda rows: chance(seed, numbers[rows[0]])):
        if len(held_out) + len(group) <= wanted:
            held_out += group
    if not held_out and len(smallest := min(groups, key=len, default=[])) < len(samples):
        held_out = smallest
    if not held_out or len(held_out) == len(samples):
        why = _why_on_one_side(len(samples), len(groups))
        raise VlmtuneError(
            f"data.val_fraction: {fraction} leaves no row to train on or none to hold out: {why}",
            "add rows, or name rows to hold out in data.val_path",
        )
    return rows_at(samples, set(range(len(samples))) - set(held_out)), rows_at(samples, held_out)


def chance(seed: int, number: int) -> bytes:
    """Return the place of a row in the random order of a seed."""
    return hashlib.sha256(f"{seed} {number}".encode()).digest()


def images_of(samples: Sequence[Sample]) -> Iterable[Collection[str | bytes]]:
    """Yield what tells the images of each row from others: paths, addresses, digests of embedded ones."""
    if isinstance(samples, SamplesOnDisk):
        yield from samples.images()
        return
    for sample in samples:
        yield [ref.path or ref.url or hashlib.sha256(ref.data or b"").digest() for ref in sample.images]


def _groups(images: Iterable[Collection[str | bytes]]) -> list[list[int]]:
    """Return the rows in groups that have no image in common, each in the order of rows."""
    leader: list[int] = []
    first_with: dict[str | bytes, int] = {}

    def leader_of(row: int) -> int:
        while leader[row] != row:
            leader[row] = row = leader[leader[row]]
        return row

    for row, names in enumerate(images):
        leader.append(row)
        for name in names:
            one, other = leader_of(first_with.setdefault(name, row)), leader_of(row)
            leader[max(one, other)] = min(one, other)
    groups: dict[int, list[int]] = {}
    for row in range(len(leader)):
        groups.setdefault(leader_of(row), []).append(row)
    return list(groups.values())


def rows_at(samples: Sequence[Sample], rows: Collection[int]) -> Sequence[Sample]:
    """Return some rows in their order."""
    if isinstance(samples, SamplesOnDisk):
        return samples.at(sorted(rows))
    return [samples[row] for row in sorted(rows)]


def _why_on_one_side(num_rows: int, num_groups: int) -> str:
    if num_rows == 1:
        return "there is one"
    return f"all {num_rows:,} share an image" if num_groups == 1 else f"there are {num_rows:,}"
