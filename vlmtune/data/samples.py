"""Data files -> samples: the one entry point of reading. No image is opened here: see `vlmtune.data.images`."""

import os
from collections import Counter
from pathlib import Path
from typing import Literal

from vlmtune.data.files import read_rows
from vlmtune.data.formats import parse_row
from vlmtune.data.image_refs import ImageRules
from vlmtune.data.types import BadRow, ImageRef, Role, RowProblem, Rows, Sample, Turn, count
from vlmtune.errors import VlmtuneError

__all__ = ["BadRow", "ImageRef", "Role", "Rows", "Sample", "Turn", "read_samples", "require_good"]

MAX_PRINTED_PROBLEMS = 50


def read_samples(path: Path, *, image_dir: Path | None = None, allow_urls: bool = False) -> Rows:
    """Every row of a `.jsonl`, `.json` or `.parquet` file: usable ones as samples, the others with their problem."""
    if image_dir is not None and not image_dir.is_dir():
        raise VlmtuneError(f"image folder {image_dir} does not exist", "correct data.image_dir")
    rules = ImageRules(os.path.abspath(image_dir or path.parent), allow_urls)
    samples: list[Sample] = []
    bad_rows: list[BadRow] = []
    num_placed_first, unused_columns = 0, Counter[str]()
    for where, row in read_rows(path):
        try:
            if isinstance(row, RowProblem):
                raise row
            parsed = parse_row(row, where, rules)
        except RowProblem as problem:
            bad_rows.append(BadRow(where, problem.problem, problem.hint))
            continue
        samples.append(parsed.sample)
        num_placed_first += parsed.images_placed_first
        unused_columns.update(parsed.unused_columns)
    if not samples and not bad_rows:
        raise VlmtuneError(f"data file {path} holds no rows")
    return Rows(samples, bad_rows, _notes(samples, num_placed_first, unused_columns))


def _notes(samples: list[Sample], num_placed_first: int, unused_columns: Counter[str]) -> tuple[str, ...]:
    notes = []
    if num_placed_first:
        notes.append(
            f"images placed before the text of the first user turn in {count(num_placed_first, 'row')} without <image>"
        )
    if unused_columns:
        names = ", ".join(f"{name} ({count(number, 'row')})" for name, number in sorted(unused_columns.items())[:20])
        notes.append(f"columns not used: {names}")
    sizes_bytes = [len(ref.data) for sample in samples for ref in sample.images if ref.data is not None]
    if sizes_bytes:
        total_mib = sum(sizes_bytes) / 2**20
        notes.append(f"{count(len(sizes_bytes), 'image')} embedded in the rows, held in memory: {total_mib:,.1f} MiB")
    return tuple(notes)


def require_good(rows: Rows, on_bad_row: Literal["error", "skip"]) -> list[Sample]:
    """The usable samples; raises one error that names every bad row, unless they are to be skipped."""
    bad_places = {bad.where for bad in rows.bad_rows}
    if rows.bad_rows and (on_bad_row == "error" or not rows.samples):
        num_rows = len(rows.samples) + len(bad_places)
        hint = "repair these rows, or leave them out with data.on_bad_row: skip" if rows.samples else None
        raise VlmtuneError(
            f"{len(bad_places):,} of {count(num_rows, 'row')} cannot be used", hint, problems=_problems(rows.bad_rows)
        )
    return rows.samples


def _problems(bad_rows: list[BadRow]) -> tuple[VlmtuneError, ...]:
    """One error a bad row; a hint is given once, at its first row."""
    problems, seen_hints = [], {None}
    for bad in bad_rows[:MAX_PRINTED_PROBLEMS]:
        problems.append(VlmtuneError(f"{bad.where}: {bad.problem}", None if bad.hint in seen_hints else bad.hint))
        seen_hints.add(bad.hint)
    if len(bad_rows) > MAX_PRINTED_PROBLEMS:
        problems.append(VlmtuneError(f"... and {len(bad_rows) - MAX_PRINTED_PROBLEMS:,} more"))
    return tuple(problems)
