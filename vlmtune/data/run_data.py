"""The rows of one run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Literal

from vlmtune.data.reading.data_files import DataFiles
from vlmtune.data.samples import refusal
from vlmtune.data.sources.shares import images_of
from vlmtune.data.sources.takes import Takes, is_weighted, rows_per_epoch, takes_of
from vlmtune.data.types import BadRow, Sample, SamplesOnDisk
from vlmtune.files import strict_json, text_sha256

if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from vlmtune.data.measure.lengths import Lengths, Measures
    from vlmtune.data.progress import Progress
    from vlmtune.families.base import Family
    from vlmtune.hub.source import ModelSource
    from vlmtune.plan.types import RunPlan


class MeasuredRows:
    """Rows for one model, measured when that is first asked for: the estimate and every try of a run share it."""

    def __init__(
        self,
        samples: Sequence[Sample],
        on_bad_row: Literal["error", "skip"] = "error",
        measured: "tuple[Measures, list[BadRow]] | None" = None,
    ) -> None:
        self.samples = samples
        self.on_bad_row: Literal["error", "skip"] = on_bad_row
        """What to do with rows that the model cannot take."""
        self._measured = measured

    def lengths(
        self,
        processor: "ProcessorMixin",
        family: "Family",
        plan: "RunPlan",
        source: "ModelSource",
        progress: "Progress | None" = None,
    ) -> "Lengths":
        """Return the tokens under one plan of every row that the model takes; `progress` is as for `measure`.

        Raises:
            VlmtuneError: rows that the model cannot take, all of them counted, or image tokens counted wrongly.
        """
        from vlmtune.data.measure.lengths import check_image_tokens

        measures = require_fitting(*self._measures(processor, family, progress, plan), self.on_bad_row)
        if len(measures.size_of_image):
            check_image_tokens(processor, family, plan, source)
        return measures.lengths(plan, family, source)

    def fitting(
        self, processor: "ProcessorMixin", family: "Family", plan: "RunPlan"
    ) -> "tuple[MeasuredRows, list[BadRow]]":
        """Return the rows that the model and its processor take under this plan, and those left out.

        Raises:
            VlmtuneError: rows are refused and shall not be skipped, or none is left.
        """
        from vlmtune.data.measure.lengths import refused_pictures

        measures, bad_rows = self._measures(processor, family, None, plan)
        return self._without(measures, refused_pictures(measures, processor, family, plan), bad_rows)

    def within_length(
        self, processor: "ProcessorMixin", family: "Family", plan: "RunPlan", source: "ModelSource"
    ) -> "tuple[MeasuredRows, list[BadRow]]":
        """Return the rows within `max_length`, or with an answer within it where they are cut, and those left out."""
        from vlmtune.data.measure.lengths import refused_lengths

        measures, _ = self._measures(processor, family, None, plan)
        return self._without(measures, refused_lengths(measures.lengths(plan, family, source), processor, family, plan))

    def _without(
        self, measures: "Measures", refused: dict[int, BadRow], known: Sequence[BadRow] = ()
    ) -> "tuple[MeasuredRows, list[BadRow]]":
        fitting = measures.without(refused)
        bad_rows = sorted([*known, *refused.values()], key=attrgetter("number"))
        require_fitting(fitting, bad_rows, self.on_bad_row)
        return MeasuredRows(fitting.samples, self.on_bad_row, (fitting, [])), bad_rows

    def _measures(
        self, processor: "ProcessorMixin", family: "Family", progress: "Progress | None", plan: "RunPlan"
    ) -> "tuple[Measures, list[BadRow]]":
        from vlmtune.data.measure.lengths import measure

        if self._measured is None:
            self._measured = measure(self.samples, processor, family, progress, plan)
        return self._measured


def require_fitting(measures: "Measures", bad_rows: list[BadRow], on_bad_row: Literal["error", "skip"]) -> "Measures":
    """Return the measures; raise one error that names rows that the model cannot take, unless they may be skipped."""
    if bad_rows and (on_bad_row == "error" or not measures.samples):
        raise refusal(bad_rows, len(measures.samples), "do not fit the model")
    return measures


@dataclass(frozen=True)
class RunData:
    """The usable rows of a run, and what was left out."""

    train: MeasuredRows
    val: MeasuredRows
    skipped: tuple[str, ...] = ()
    """`train.jsonl:12: problem` of each row that was skipped."""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    files: DataFiles = DataFiles(())
    """Those that the training rows are in."""
    digest: str = ""
    """Of all that decides which rows are trained on, and how often."""
    commits: Mapping[str, str] = field(default_factory=dict)
    """`org/data@main` → the commit that it stands for in this run."""

    @property
    def rows_per_epoch(self) -> int:
        """Rows to train on in one epoch, by the weights of their sources."""
        return rows_per_epoch(self.train.samples, self.files)

    def takes(self, plan: "RunPlan") -> Takes | None:
        """Return which rows an epoch takes; None where it takes each once, and each take of a row is the same."""
        return takes_of(self.train.samples, self.files, plan)


def digest_of(files: DataFiles, max_samples: int | None = None, val_fraction: float | None = None) -> str:
    """Return the digest of all that decides which rows are trained on; of one file alone that of its content."""
    decided = {
        "sources": [(source.digest, source.weight) for source in files.sources],
        "columns": [sorted(file.columns.items()) for file in files],
        "max_samples": max_samples,
        "val_fraction": val_fraction,
    }
    if any(prompts := [file.prompt for file in files]):
        decided["prompts"] = prompts
    is_plain = len(files.sources) == 1 and not any((is_weighted(files), max_samples, val_fraction))
    if is_plain and not any(file.columns or file.prompt for file in files):
        return files.sources[0].digest
    return text_sha256(strict_json(decided))


def warning_of_shared_rows(
    train: Sequence[Sample], val: Sequence[Sample], train_files: DataFiles, val_files: DataFiles | None
) -> str | None:
    """Return a warning where rows to evaluate on, or their images, are trained on too; None where none are.

    `val_files` is None for a share of the training rows. Rows of large files, which are on disk, are compared as whole
    files only.
    """
    if isinstance(train, SamplesOnDisk) or isinstance(val, SamplesOnDisk):
        same = val_files and [one.digest for one in train_files.sources] == [one.digest for one in val_files.sources]
        if not same:
            return None
        shared = min(len(train), len(val))  # data.max_samples leaves some of a file
    else:
        trained = {sample.turns for sample in train}
        shared = sum(sample.turns in trained for sample in val)
    if not shared:
        return _warning_of_shared_images(train, val)
    where = "in data.val_path" if val_files else "held out (data.val_fraction)"
    return (
        f"warning: {shared:,} of {len(val):,} rows {where} are trained on too: "
        "the evaluation loss will tell what was learned by heart; keep rows apart that no run trains on"
    )


def _warning_of_shared_images(train: Sequence[Sample], val: Sequence[Sample]) -> str | None:
    trained = {name for names in images_of(train) for name in names}
    shared = sum(any(name in trained for name in names) for names in images_of(val))
    if not shared:
        return None
    return (
        f"warning: the images of {shared:,} of {len(val):,} held-out rows are trained on too, with other texts: "
        "what is known of them may be what was learned by heart; data.val_fraction keeps rows of one image together"
    )
