"""All that makes a model faster and changes nothing that it computes, as its plan says."""

from torch import nn

from vlmtune.families.base import Family
from vlmtune.models.attention.varlen import attend_by_rows
from vlmtune.models.graphs.layers import graph_layers
from vlmtune.models.speed.constants import join_constants
from vlmtune.models.speed.deepstack import add_deep_features
from vlmtune.models.speed.gated import fuse_gates
from vlmtune.models.speed.norms import fuse_norms
from vlmtune.models.speed.rotary import fuse_rotary
from vlmtune.models.speed.widths import align_widths
from vlmtune.plan.types import RunPlan


def make_faster(model: nn.Module, plan: RunPlan, family: Family) -> None:
    """Let a base model, or its tower alone, attend and multiply in ways that cards are fast at."""
    attend_by_rows(model, plan, family)
    align_widths(model, plan)
    join_constants(model, plan)
    add_deep_features(model)
    fuse_norms(model, plan)
    fuse_gates(model, plan)
    fuse_rotary(model, plan)
    if plan.cuda_graphs:
        graph_layers(model, family)
