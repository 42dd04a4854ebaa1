"""The rows of one run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlmtune.data.types import Sample, SamplesOnDisk
from vlmtune.files import file_sha256

if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from vlmtune.data.measure.lengths import Lengths, Measures
    from vlmtune.data.progress import Progress
    from vlmtune.families.base import Family
    from vlmtune.hub.source import ModelSource
    from vlmtune.plan.types import RunPlan


class MeasuredRows:
    """Rows for one model, measured when that is first asked for: the estimate and every try of a run share it."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self._measures: Measures | None = None

    def lengths(
        self,
        processor: "ProcessorMixin",
        family: "Family",
        plan: "RunPlan",
        source: "ModelSource",
        progress: "Progress | None" = None,
    ) -> "Lengths":
        """Return every row's tokens under one plan; `progress` is as for `measure`.

        Raises:
            VlmtuneError: rows that the model cannot take, all of them named, or image tokens counted wrongly.
        """
        from vlmtune.data.measure.lengths import check_image_tokens, measure

        if self._measures is None:
            self._measures = measure(self.samples, processor, family, progress, plan)
        if len(self._measures.size_of_image):
            check_image_tokens(processor, family, plan, source)
        return self._measures.lengths(plan, family, source)


@dataclass(frozen=True)
class RunData:
    """The usable rows of a run, and what was left out."""

    train: MeasuredRows
    val: MeasuredRows
    skipped: tuple[str, ...] = ()
    """`train.jsonl:12: problem` of each row that was skipped."""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def warning_of_shared_rows(
    train: Sequence[Sample], val: Sequence[Sample], train_path: Path, val_path: Path
) -> str | None:
    """Return a warning where rows to evaluate on are trained on too; None where none are.

    Rows of large files, which are on disk, are compared as whole files only.
    """
    if file_sha256(train_path) == file_sha256(val_path):
        shared = len(val)
    elif isinstance(train, SamplesOnDisk) or isinstance(val, SamplesOnDisk):
        return None
    else:
        trained = {sample.turns for sample in train}
        shared = sum(sample.turns in trained for sample in val)
    if not shared:
        return None
    return (
        f"warning: {shared:,} of {len(val):,} rows in data.val_path are trained on too: "
        "the evaluation loss will tell what was learned by heart; keep rows apart that no run trains on"
    )
