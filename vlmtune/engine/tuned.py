"""A finished run, loaded for use: its plan on this machine's device, its model, its processor."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoProcessor, ProcessorMixin

from vlmtune.engine.runtime import probe_device
from vlmtune.errors import VlmtuneError
from vlmtune.models.build import build_tuned, load_base
from vlmtune.plan.file import load_plan
from vlmtune.plan.types import RunPlan
from vlmtune.runs.folder import RunFolder


@dataclass(frozen=True)
class Tuned:
    """What a run made, ready to answer."""

    plan: RunPlan
    model: nn.Module
    processor: ProcessorMixin


def plan_here(folder: RunFolder) -> RunPlan:
    """Return the run's plan for the device of this machine."""
    plan = load_plan(folder.plan)
    device = probe_device()
    if plan.base_dtype == "fp16" and device.kind == "cpu":
        return dataclasses.replace(plan, device="cpu", base_dtype="fp32")
    return dataclasses.replace(plan, device=device.kind)


def load_tuned(folder: RunFolder) -> Tuned:
    """Return the run's model with what it learned.

    Raises:
        VlmtuneError: the run has not finished.
    """
    plan = plan_here(folder)
    saved = folder.model if plan.method == "full" else folder.adapter
    if not saved.is_dir():
        raise VlmtuneError(
            f"{folder.path} has no {saved.name}: the run has not finished", "continue it: vlmtune train CONFIG --resume"
        )
    if plan.method == "full":
        model = load_base(dataclasses.replace(plan, model=str(saved.resolve()))).eval()
    else:
        model = build_tuned(plan, str(saved))
    return Tuned(plan, model.requires_grad_(False), AutoProcessor.from_pretrained(saved))


def load_untuned(folder: RunFolder) -> Tuned:
    """Return the model as it was before the run, with the processor as the run sets it."""
    from vlmtune.models.processor import load_processor

    plan = plan_here(folder)
    torch.manual_seed(plan.seed)
    return Tuned(plan, load_base(plan).eval().requires_grad_(False), load_processor(plan))
