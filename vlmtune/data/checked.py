"""Rows with their pictures looked at, wherever the rows are."""

from collections.abc import Collection, Iterator, Sequence
from operator import attrgetter

from vlmtune.data.boxes.check import outside
from vlmtune.data.boxes.writing import has_boxes
from vlmtune.data.images import check_images, image_size_px, notes_of
from vlmtune.data.progress import Progress, silent
from vlmtune.data.types import BadRow, Rows, Sample, SamplesOnDisk


def with_images_checked(rows: Rows, *, num_threads: int | None = None, progress: Progress = silent) -> Rows:
    """`rows` with every sample whose pictures cannot be used moved to the bad rows, in the file's order."""
    if isinstance(rows.samples, SamplesOnDisk):
        from vlmtune.data.table.looks import with_table_checked

        return with_table_checked(rows, progress)
    bad_rows, looks = check_images(rows.samples, num_threads=num_threads)
    bad_rows += _with_box_outside(rows.samples, {bad.where for bad in bad_rows})
    bad_places = {bad.where for bad in bad_rows}
    samples = [sample for sample in rows.samples if sample.where not in bad_places]
    notes = (*rows.notes, *notes_of(look.traits for look in looks))
    return Rows(samples, sorted(rows.bad_rows + bad_rows, key=attrgetter("number")), notes)


def _with_box_outside(samples: Sequence[Sample], bad_places: Collection[str]) -> Iterator[BadRow]:
    """One `BadRow` for every row whose pictures can be used, with a box outside of one."""
    for sample in samples:
        if sample.where in bad_places or not has_boxes(sample):
            continue
        texts = [turn.text for turn in sample.turns]
        if problem := outside(texts, lambda number, images=sample.images: image_size_px(images[number])):
            yield BadRow(sample.where, problem.problem, problem.hint, sample.number)
