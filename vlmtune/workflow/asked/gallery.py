"""The page of an evaluation, with the pictures of its rows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlmtune.data.types import Sample
    from vlmtune.runs.folder import RunFolder
    from vlmtune.runs.records import EvaluationRecord


def write_gallery(folder: "RunFolder", record: "EvaluationRecord", samples: "Sequence[Sample]") -> None:
    """Write `evaluation.html` into the run folder; `samples` are the rows of the record, in their order."""
    from vlmtune.data.pictures.thumbnails import pictures_of_rows
    from vlmtune.files import write_atomically
    from vlmtune.metrics.table import METRICS
    from vlmtune.runs.pages.evaluation import Judge, render_evaluation, rows_shown

    metric = next(iter(record.metrics))
    pictures = pictures_of_rows({place: samples[place].images for place in rows_shown(record)})
    judge = Judge(metric, METRICS[metric].is_error)
    write_atomically(folder.evaluation_html, render_evaluation(record, folder.path.resolve().name, judge, pictures))
