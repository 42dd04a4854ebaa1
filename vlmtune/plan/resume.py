"""What of a plan may differ when a run goes on: the levers' own rules, and what decides no weight."""

import dataclasses

from vlmtune import levers
from vlmtune.levers.base import OnResume
from vlmtune.plan.length import num_steps
from vlmtune.plan.types import RunPlan

FREE_FIELDS = {
    "adapter",
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
    "metrics",
    "generate_rows",
    "generate_minutes",
    "early_stopping_patience",
}
"""Fields that no lever owns and that decide nothing of the result but the order in which numbers are added."""

LENGTH_FIELDS = {"num_epochs", "max_steps"}
"""A run may be made longer, at its end too."""


def is_longer(plan: RunPlan, begun: RunPlan, num_rows: int) -> bool:
    """Return whether a run has more steps now than when it began."""
    return num_steps(plan, num_rows) > num_steps(begun, num_rows)


def told_of_longer(plan: RunPlan, begun: RunPlan, num_rows: int) -> str | None:
    """Return what people are told of a run that was made longer; None of any other."""
    if not is_longer(plan, begun, num_rows):
        return None
    before, now = num_steps(begun, num_rows), num_steps(plan, num_rows)
    told = f"{now:,} steps in place of {before:,}: "
    if plan.lr_scheduler_type == "constant":
        return told + "the weights will be those of one long run, the learning rate is constant"
    return told + (
        f"the learning rate goes on as a run of {now:,} steps has it ({plan.lr_scheduler_type}), and was that of "
        f"{before:,} so far, so the weights will not be those of one long run"
    )


def differences(plan: RunPlan, begun: RunPlan, *, num_rows: int, has_checkpoint: bool = True) -> list[str]:
    """Return the values that decide the result and differ from those of the run as it began: `field: then -> now`.

    Of `num_rows` a run may take more steps than it began with, and not fewer: a checkpoint may be further than those.

    Without a checkpoint a run begins anew, so levers that are free until the first one may have changed as well: a
    retry may have been noted when a kill came before the plan that has it.
    """
    free = {OnResume.FREE} if has_checkpoint else {OnResume.FREE, OnResume.UNTIL_CHECKPOINT}
    owners = {field: lever for lever in levers.LEVERS for field in lever.fields}

    def may_change(name: str) -> bool:
        if name in LENGTH_FIELDS:
            return num_steps(plan, num_rows) >= num_steps(begun, num_rows)
        if name not in owners:
            # From eager attention to SDPA only the order of additions changes; the other way, scores may be capped now.
            to_sdpa = name == "attention" and plan.attention == "sdpa"
            return name in FREE_FIELDS or to_sdpa or (name == "boxes" and not begun.boxes)
        return owners[name].on_resume in free and owners[name].same_result(begun, plan)

    return [
        f"{name}: {getattr(begun, name)} -> {getattr(plan, name)}"
        for name in (field.name for field in dataclasses.fields(plan))
        if getattr(plan, name) != getattr(begun, name) and not may_change(name)
    ]
