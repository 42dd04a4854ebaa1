"""What of a plan may differ when a run goes on: the levers' own rules, and what decides no weight."""

import dataclasses

from vlmtune import levers
from vlmtune.levers.base import OnResume
from vlmtune.plan.types import RunPlan

FREE_FIELDS = {
    "choices",
    "data_sources",
    "data_commits",
    "loss_chunk_tokens",
    "num_workers",
    "logging_steps",
    "eval_steps",
    "save_steps",
    "save_minutes",
    "save_total_limit",
    "report_to",
}
"""Fields that no lever owns and that decide nothing of the result but the order in which numbers are added."""


def differences(plan: RunPlan, begun: RunPlan, *, has_checkpoint: bool = True) -> list[str]:
    """Return the values that decide the result and differ from those of the run as it began: `field: then -> now`.

    Without a checkpoint a run begins anew, so levers that are free until the first one may have changed as well: a
    retry may have been noted when a kill came before the plan that has it.
    """
    free = {OnResume.FREE} if has_checkpoint else {OnResume.FREE, OnResume.UNTIL_CHECKPOINT}
    owners = {field: lever for lever in levers.LEVERS for field in lever.fields}

    def may_change(name: str) -> bool:
        if name not in owners:
            return name in FREE_FIELDS or (name == "boxes" and not begun.boxes)
        return owners[name].on_resume in free and owners[name].same_result(begun, plan)

    return [
        f"{name}: {getattr(begun, name)} -> {getattr(plan, name)}"
        for name in (field.name for field in dataclasses.fields(plan))
        if getattr(plan, name) != getattr(begun, name) and not may_change(name)
    ]
