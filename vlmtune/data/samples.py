"""Data files -> samples: the one entry point of reading. No image is opened here: see `vlmtune.data.images`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vlmtune.data.progress import Progress, silent
from vlmtune.data.reading.data_files import DataFile, DataFiles
from vlmtune.data.reading.files import Piece, check_file
from vlmtune.data.reading.image_refs import ImageRules
from vlmtune.data.reading.pieces import Found, samples_of
from vlmtune.data.types import BadRow, ImageRef, Role, Rows, Sample, Turn, count
from vlmtune.errors import VlmtuneError

__all__ = ["BadRow", "ImageRef", "Role", "Rows", "Sample", "Turn", "read_samples", "require_good"]

MAX_PRINTED_PROBLEMS = 50
LARGE_BYTES = 4 * 2**20
"""Files from this size on are read by several processes into a table on disk; for smaller ones that is no gain."""


def read_samples(
    path: Path, *, image_dir: Path | None = None, allow_urls: bool = False, progress: Progress = silent
) -> Rows:
    """Every row of a `.jsonl`, `.json` or `.parquet` file: usable ones as samples, the others with their problem."""
    check_image_dir(image_dir)
    check_file(path)
    rules = ImageRules(os.path.abspath(image_dir or path.parent), allow_urls)
    return read_files(DataFiles((DataFile(path, rules, path.name),)), progress)


def read_files(files: DataFiles, progress: Progress = silent) -> Rows:
    """Every row of checked files: usable ones as samples, the others with their problem."""
    if files.size_bytes >= LARGE_BYTES:
        from vlmtune.data.table.make import table_of

        try:
            return table_of(files, progress)
        except (OSError, UnicodeEncodeError) as error:
            rows = _in_memory(files)
            return Rows(rows.samples, rows.bad_rows, (*rows.notes, f"the rows are held in memory: {error}"))
    return _in_memory(files)


def check_image_dir(image_dir: Path | None) -> None:
    """Raise when the folder that image paths start from is not there."""
    if image_dir is not None and not image_dir.is_dir():
        raise VlmtuneError(f"image folder {image_dir} does not exist", "correct data.image_dir")


def _in_memory(files: DataFiles) -> Rows:
    found = Found()
    samples = [
        sample
        for index, file in enumerate(files)
        for sample in samples_of(Piece(file.path, first_number=file.first_number, called=file.name), file, index, found)
    ]
    return found.rows(files, samples)


def require_good(rows: Rows, on_bad_row: Literal["error", "skip"]) -> Sequence[Sample]:
    """The usable samples; raises one error that names every bad row, unless they are to be skipped."""
    if rows.bad_rows and (on_bad_row == "error" or not rows.samples):
        raise refusal(rows.bad_rows, len(rows.samples), "cannot be used")
    return rows.samples


REPAIR = "repair these rows, or leave them out with data.on_bad_row: skip"


def refusal(bad_rows: list[BadRow], num_good: int, what: str, hint: str = REPAIR) -> VlmtuneError:
    """Return one error that names the first of some bad rows and counts them all; `what` is wrong with them."""
    num_bad = len({bad.where for bad in bad_rows})
    what = what.replace("do not", "does not") if num_bad + num_good == 1 else what
    message = f"{num_bad:,} of {count(num_bad + num_good, 'row')} {what}"
    return VlmtuneError(message, hint if num_good else None, problems=_problems(bad_rows))


def _problems(bad_rows: list[BadRow]) -> tuple[VlmtuneError, ...]:
    """One error a bad row; a hint is given once, at its first row."""
    problems, seen_hints = [], {None}
    for bad in bad_rows[:MAX_PRINTED_PROBLEMS]:
        problems.append(VlmtuneError(f"{bad.where}: {bad.problem}", None if bad.hint in seen_hints else bad.hint))
        seen_hints.add(bad.hint)
    if len(bad_rows) > MAX_PRINTED_PROBLEMS:
        problems.append(VlmtuneError(f"... and {len(bad_rows) - MAX_PRINTED_PROBLEMS:,} more"))
    return tuple(problems)
