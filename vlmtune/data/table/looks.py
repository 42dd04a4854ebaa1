"""The pictures that a table names, looked at once: what was seen holds as long as the file stays as it was."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from vlmtune.data.boxes.check import outside
from vlmtune.data.images import Look, checked_look, notes_of, without_warnings
from vlmtune.data.progress import Progress
from vlmtune.data.reading.image_refs import is_address
from vlmtune.data.table.kept import keep_array, kept_array
from vlmtune.data.table.make import whole_table
from vlmtune.data.table.pool import each
from vlmtune.data.table.rows import REF_OF_IMAGE, REFS, MappedBatches, TableRows
from vlmtune.data.types import BadRow, ImageRef, RowProblem, Rows
from vlmtune.errors import VlmtuneError

LOOKS = "looks.npy"
LOOK = np.dtype([("changed_ns", np.int64), ("size_bytes", np.int64), *((name, np.int32) for name in Look._fields)])
"""Of a picture that can be used: when its file changed last, its sizes and its traits; 0 where that is not known."""
NOTHING = (0,) * len(LOOK.names)
REFS_AT_ONCE = 2**14
Problem = tuple[str, str | None]
"""What is wrong with a picture, and a hint."""


def with_table_checked(rows: Rows, progress: Progress) -> Rows:
    """`rows` of a table with every sample whose pictures cannot be used moved to the bad rows, in the file's order."""
    table = rows.samples
    assert isinstance(table, TableRows)
    looks, problems = _look_at_all(table.folder, progress)
    bad_rows = [*_rows_with(problems, table), *_found_blobs(table)]
    numbers = table.facts["number"][table.rows]
    checked = table.chosen(~np.isin(numbers, [bad.number for bad in bad_rows]))
    checked.refs_px = np.stack([looks["width_px"], looks["height_px"]], axis=1)
    if bad_boxes := [*_with_box_outside(checked)]:
        bad_rows += bad_boxes
        checked = checked.chosen(~np.isin(checked.facts["number"][checked.rows], [bad.number for bad in bad_boxes]))
    notes = (*rows.notes, *notes_of([*looks["traits"].tolist(), *table.blobs["traits"].tolist()]))
    return Rows(checked, sorted(rows.bad_rows + bad_rows, key=lambda bad: bad.number), notes)


def image_sizes_px(table: TableRows) -> tuple[np.ndarray, np.ndarray]:
    """Return how many images each row has, [rows], and each image's width and height, row after row, [images, 2].

    Raises:
        VlmtuneError: the pictures were not checked before, and one cannot be used.
    """
    return table.image_sizes_px(_checked_refs_px(table) if table.refs_px is None else table.refs_px)


def _checked_refs_px(table: TableRows) -> np.ndarray:
    checked = with_table_checked(Rows(table, [], ()), table.progress)
    for bad in checked.bad_rows:
        raise VlmtuneError(f"{bad.where}: {bad.problem}", bad.hint)
    return checked.samples.refs_px


def _with_box_outside(table: TableRows) -> Iterator[BadRow]:
    """Yield a `BadRow` for every row with a box outside its picture."""
    if not table.num_with_boxes:
        return
    num_images, sizes_px = image_sizes_px(table)
    starts = (np.cumsum(num_images) - num_images).tolist()
    facts = table.facts[table.rows]
    numbers, has_boxes = facts["number"].tolist(), facts["has_boxes"].tolist()
    for row, texts in enumerate(texts for _, some, _ in table.batches() for texts in some):
        if has_boxes[row]:
            start = starts[row]
            problem = outside(texts, lambda image, start=start: tuple(sizes_px[start + image].tolist()))
            if problem:
                yield BadRow(table.files.place(numbers[row]), problem.problem, problem.hint, numbers[row])


def _found_blobs(table: TableRows) -> list[BadRow]:
    found = whole_table(table.folder, table.files)
    return found.bad_blobs if found else []


def _rows_with(problems: dict[int, Problem], table: TableRows) -> list[BadRow]:
    """Return one `BadRow` for every row and picture in it that has a problem."""
    index, ref_of_image = table.facts, np.load(table.folder / REF_OF_IMAGE)
    number_of_image = np.repeat(index["number"], index["num_refs"])
    images = np.flatnonzero(np.isin(ref_of_image, list(problems)))
    pairs = dict.fromkeys(zip(number_of_image[images].tolist(), ref_of_image[images].tolist(), strict=True))
    return [BadRow(table.files.place(number), *problems[ref], number) for number, ref in pairs]


def _look_at_all(folder: Path, progress: Progress) -> tuple[np.ndarray, dict[int, Problem]]:
    """Return what is seen of each picture, [refs] of `LOOK`, and what is wrong with some."""
    known = np.array(_known(folder))
    starts = range(0, len(known), REFS_AT_ONCE)
    tasks = [_Task(folder, start, known[start : start + REFS_AT_ONCE]) for start in starts]
    looks, problems = known.copy(), {}
    with progress("looking at pictures", len(known)) as advance:
        for task, seen in zip(tasks, each(_look, tasks) if len(tasks) > 1 else map(_look, tasks), strict=True):
            looks[task.start : task.start + REFS_AT_ONCE] = seen.looks
            problems |= seen.problems
            advance(len(seen.looks))
    if not np.array_equal(looks, known):
        keep_array(folder / LOOKS, looks)
    return looks, problems


def _known(folder: Path) -> np.ndarray:
    """Return what was seen at an earlier start, [refs] of `LOOK`."""
    num_refs = sum(batch.num_rows for batch in MappedBatches(folder / REFS).batches)
    return kept_array(folder / LOOKS, np.zeros(num_refs, LOOK))


@dataclass(frozen=True)
class _Task:
    folder: Path
    start: int
    known: np.ndarray
    """What was seen of these pictures at an earlier start, of `LOOK`."""


@dataclass(frozen=True)
class _Seen:
    looks: np.ndarray
    problems: dict[int, Problem]


def _look(task: _Task) -> _Seen:
    """Look at some pictures of a table that are new or have changed."""
    refs = pa.Table.from_batches(MappedBatches(task.folder / REFS).batches)
    names = refs.slice(task.start, len(task.known))["ref"].to_pylist()
    looks, problems = [], {}
    with without_warnings():
        for number, (name, look) in enumerate(zip(names, task.known.tolist(), strict=True), task.start):
            try:
                looks.append(_look_at(name, look))
            except RowProblem as problem:
                problems[number] = problem.problem, problem.hint
                looks.append(NOTHING)
    return _Seen(np.array(looks, LOOK), problems)


def _look_at(name: str, known: tuple[int, ...]) -> tuple[int, ...]:
    """Return a `LOOK`; what was seen holds for a file that has not changed since."""
    if is_address(name):
        return 0, 0, *checked_look(ImageRef(url=name))
    try:
        status = os.stat(name)
    except OSError:
        return 0, 0, *checked_look(ImageRef(path=name))  # which says what is wrong with it
    state = status.st_mtime_ns, status.st_size
    return known if known[:2] == state and known[2] else (*state, *checked_look(ImageRef(path=name)))
