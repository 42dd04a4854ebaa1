"""The optimizer of a plan."""

import torch
from torch import nn

from vlmtune.plan.types import RunPlan


def build_optimizer(model: nn.Module, plan: RunPlan) -> torch.optim.Optimizer:
    """Return AdamW over the trainable parameters; weight decay acts on matrices only, not on norms and biases."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": plan.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if plan.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=plan.learning_rate, fused=True)
    import bitsandbytes

    kinds = {"adamw_8bit": bitsandbytes.optim.AdamW8bit, "paged_adamw_8bit": bitsandbytes.optim.PagedAdamW8bit}
    return kinds[plan.optimizer](groups, lr=plan.learning_rate)
