"""The page of an evaluation, with the pictures of its rows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from vlmtune.data.types import Sample
    from vlmtune.runs.records import EvaluationRecord


def write_gallery(path: "Path", record: "EvaluationRecord", samples: "Sequence[Sample]") -> None:
    """Write the page into its run folder; `samples` are the rows of the record, in their order."""
    from vlmtune.data.pictures.thumbnails import pictures_of_rows
    from vlmtune.files import write_atomically
    from vlmtune.metrics.table import METRICS
    from vlmtune.runs.pages.evaluation import Judge, render_evaluation, rows_shown

    metric = next(iter(record.metrics))
    pictures = pictures_of_rows({place: samples[place].images for place in rows_shown(record)})
    judge = Judge(metric, METRICS[metric].is_error)
    write_atomically(path, render_evaluation(record, path.resolve().parent.name, judge, pictures))
