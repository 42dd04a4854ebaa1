"""`evaluation.json`: what the newest evaluation of a run has found, row by row."""

from dataclasses import fields, replace
from typing import TypeVar

from vlmtune.files import write_atomically
from vlmtune.runs.folder import RunFolder, read_json
from vlmtune.runs.records import Answered, EvaluationRecord, Summary

T = TypeVar("T")
BASE = "base"
"""What is asked where no run has taught it anything."""


def write_evaluation(folder: RunFolder, record: EvaluationRecord) -> None:
    """Keep what an evaluation has found, in place of the one before."""
    write_atomically(folder.evaluation, record.to_json())


def read_evaluation(folder: RunFolder) -> EvaluationRecord | None:
    """Return what the newest evaluation has found, None where there was none."""
    return read_json(folder.evaluation, EvaluationRecord) if folder.evaluation.exists() else None


def beside_base(record: EvaluationRecord, earlier: EvaluationRecord | None) -> EvaluationRecord:
    """Return an evaluation beside that of the base, where an earlier one has asked it the same."""
    if record.before or record.asked == BASE or earlier is None or _what_was_asked(record) != _what_was_asked(earlier):
        return record
    of_base, rows = earlier.before, [row.before for row in earlier.rows]
    if earlier.asked == BASE:
        of_base, rows = earlier, earlier.rows
    if of_base is None or of_base.asked != BASE or not all(rows):
        return record
    return replace(
        record,
        before=_only(Summary, of_base),
        rows=[replace(row, before=_only(Answered, old)) for row, old in zip(record.rows, rows, strict=True)],
    )


def _what_was_asked(record: EvaluationRecord) -> tuple:
    return record.max_new_tokens, [(row.where, row.question, row.expected) for row in record.rows]


def _only(shape: type[T], value: T) -> T:
    """Return the fields of a shape of a value that has more."""
    return shape(**{field.name: getattr(value, field.name) for field in fields(shape)})
