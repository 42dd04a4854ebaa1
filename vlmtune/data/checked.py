"""Rows with their pictures looked at, wherever the rows are."""

from operator import attrgetter

from vlmtune.data.images import check_images, notes_of
from vlmtune.data.progress import Progress, silent
from vlmtune.data.types import Rows, SamplesOnDisk


def with_images_checked(rows: Rows, *, num_threads: int | None = None, progress: Progress = silent) -> Rows:
    """`rows` with every sample whose pictures cannot be used moved to the bad rows, in the file's order."""
    if isinstance(rows.samples, SamplesOnDisk):
        from vlmtune.data.table.looks import with_table_checked

        return with_table_checked(rows, progress)
    bad_rows, looks = check_images(rows.samples, num_threads=num_threads)
    bad_places = {bad.where for bad in bad_rows}
    samples = [sample for sample in rows.samples if sample.where not in bad_places]
    notes = (*rows.notes, *notes_of(look.traits for look in looks))
    return Rows(samples, sorted(rows.bad_rows + bad_rows, key=attrgetter("number")), notes)
