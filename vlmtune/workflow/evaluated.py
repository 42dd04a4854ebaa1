"""What an evaluation leaves in the run folder: `evaluation.json`, and its page with the pictures of the rows."""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from vlmtune.errors import VlmtuneError

if TYPE_CHECKING:
    from vlmtune.data.types import Sample
    from vlmtune.runs.folder import RunFolder
    from vlmtune.runs.records import EvaluationRecord


def keep_evaluation(folder: "RunFolder", record: "EvaluationRecord", samples: "Sequence[Sample]") -> "EvaluationRecord":
    """Write an evaluation into the run folder, beside that of the base where the folder has one; return what is kept.

    `samples` are the rows of the record, in their order.
    """
    from vlmtune.data.pictures.thumbnails import pictures_of_rows
    from vlmtune.files import write_atomically
    from vlmtune.runs.evaluation import beside_base, read_evaluation, write_evaluation
    from vlmtune.runs.pages.evaluation import render_evaluation, rows_shown

    earlier = None
    with suppress(VlmtuneError):  # a damaged one is replaced
        earlier = read_evaluation(folder)
    record = beside_base(record, earlier)
    write_evaluation(folder, record)
    pictures = pictures_of_rows({place: samples[place].images for place in rows_shown(record)})
    write_atomically(folder.evaluation_html, render_evaluation(record, folder.path.resolve().name, pictures))
    return record


def record_of(result, samples, asked):
    from vlmtune.runs.records import EvaluatedRow, EvaluationRecord

    rows = [
        EvaluatedRow(
            answer=one.answer,
            loss=one.loss,
            cut=one.cut,
            scores={"exact": float(one.exact)},
            where=one.where,
            images=[ref.name for ref in sample.images],
            question=one.question,
            expected=[one.expected],
        )
        for one, sample in zip(result.answers, samples, strict=True)
    ]
    return EvaluationRecord(
        asked=asked,
        loss=result.loss,
        metrics={"exact": result.exact_match},
        num_cut=result.num_cut,
        data=rows[0].where.partition(":")[0],
        max_new_tokens=result.max_new_tokens,
        rows=rows,
    )
