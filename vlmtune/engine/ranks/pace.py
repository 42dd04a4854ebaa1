"""Processes that share a model's layers go through as many passes as any of them."""

from torch import nn

from vlmtune.engine.ranks import group
from vlmtune.models.layers.shards import pass_by
from vlmtune.plan.types import RunPlan


def keep_pace(model: nn.Module, plan: RunPlan, own_passes: int) -> None:
    """Take part in the passes of a step that others have more of than this process; only packs differ in number."""
    if plan.sharded and plan.pack_tokens:
        for _ in range(max(group.gathered(own_passes)) - own_passes):
            pass_by(model)
