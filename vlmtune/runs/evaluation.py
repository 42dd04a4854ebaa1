"""`evaluation.json`, `evaluation-base.json`: what the newest evaluation of a run has found, row by row."""

from pathlib import Path

from vlmtune.files import write_atomically
from vlmtune.runs.folder import RunFolder, read_json
from vlmtune.runs.records import EvaluationRecord


def write_evaluation(path: Path, record: EvaluationRecord) -> None:
    """Keep what an evaluation has found, in place of the one before."""
    write_atomically(path, record.to_json())


def read_evaluation(folder: RunFolder) -> EvaluationRecord | None:
    """Return what the newest evaluation has found, None where there was none."""
    return read_json(folder.evaluation, EvaluationRecord) if folder.evaluation.exists() else None
