"""What of a plan may differ when a run goes on: the levers' own rules, and what decides no weight."""

import dataclasses

from vlmtune import levers
from vlmtune.levers.base import Lever, OnResume
from vlmtune.plan.types import RunPlan

FREE_FIELDS = {
    "choices",
    "num_workers",
    "logging_steps",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "report_to",
}
"""Fields that no lever owns and that decide nothing of the result."""


def differences(plan: RunPlan, begun: RunPlan) -> list[str]:
    """Return the values that decide the result and differ from those of the run as it began: `field: then -> now`."""
    owners = {field: lever for lever in levers.LEVERS for field in lever.fields}
    return [
        f"{name}: {getattr(begun, name)} -> {getattr(plan, name)}"
        for name in (field.name for field in dataclasses.fields(plan))
        if getattr(plan, name) != getattr(begun, name) and not _may_change(name, owners, begun, plan)
    ]


def _may_change(name: str, owners: dict[str, Lever], begun: RunPlan, now: RunPlan) -> bool:
    if name not in owners:
        return name in FREE_FIELDS
    return owners[name].on_resume is OnResume.FREE and owners[name].same_result(begun, now)
