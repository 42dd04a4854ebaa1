"""Every row meets the model's template and processor before the model is downloaded or loaded."""

from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING

from vlmtune.data.types import count
from vlmtune.printing import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import ProcessorMixin

    from vlmtune.data.run_data import MeasuredRows, RunData
    from vlmtune.data.types import BadRow, Sample
    from vlmtune.hub.source import ModelSource
    from vlmtune.plan.types import RunPlan


def fitting_rows(rows: "MeasuredRows", plan: "RunPlan", source: "ModelSource") -> "tuple[MeasuredRows, list[BadRow]]":
    """Return the rows that the plan's model takes, and those left out; loads the model's processor.

    Where rows are skipped, so are those that are too long.

    Raises:
        VlmtuneError: rows are refused and shall not be skipped.
    """
    from vlmtune.engine.runtime import quiet_libraries

    quiet_libraries()
    from vlmtune.models.build import family_of
    from vlmtune.models.processor import load_processor

    processor, family = load_processor(plan), family_of(plan)
    fitting, bad_rows = rows.fitting(processor, family, plan)
    if rows.on_bad_row == "error":
        return fitting, bad_rows
    fitting, too_long = fitting.within_length(processor, family, plan, source)
    return fitting, sorted([*bad_rows, *too_long], key=attrgetter("number"))


def fitting_samples(rows: "MeasuredRows", plan: "RunPlan", processor: "ProcessorMixin") -> "Sequence[Sample]":
    """Return the rows to ask a model that it takes, and say how many were left out; they may be of any length.

    Raises:
        VlmtuneError: rows are refused and shall not be skipped.
    """
    from vlmtune.models.build import family_of

    fitting, bad_rows = rows.fitting(processor, family_of(plan), plan)
    if bad_rows:
        say(f"skipping {count(len(bad_rows), 'row')} that the model does not take (data.on_bad_row)", err=True)
    return fitting.samples


def fitting_data(data: "RunData", plan: "RunPlan", source: "ModelSource") -> "RunData":
    """Return the rows of a run that its model takes, and say how many were left out.

    Raises:
        VlmtuneError: rows are refused and shall not be skipped.
    """
    train, bad_rows = fitting_rows(data.train, plan, source)
    val, bad_val_rows = fitting_rows(data.val, plan, source) if data.val.samples else (data.val, [])
    skipped = (*data.skipped, *(f"{bad.where}: {bad.problem}" for bad in bad_rows))
    if skipped:
        say(f"skipping {count(len(skipped), 'row')} (data.on_bad_row: skip); report.json names them", err=True)
    if bad_val_rows:
        say(f"skipping {count(len(bad_val_rows), 'held-out row')} that the model does not take", err=True)
    return replace(data, train=train, val=val, skipped=skipped)
