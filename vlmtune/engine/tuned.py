"""A finished run, loaded for use: its plan on this machine's device, its model, its processor."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoProcessor, ProcessorMixin

from vlmtune.data.features.prepare import Teller, features_of
from vlmtune.data.features.rows import RowFeatures
from vlmtune.data.types import Sample
from vlmtune.engine.runtime import probe_device
from vlmtune.errors import VlmtuneError
from vlmtune.hub.source import open_model
from vlmtune.models.build import base_of, build_tuned, load_base
from vlmtune.models.features import serve_features
from vlmtune.plan.file import load_plan
from vlmtune.plan.types import RunPlan
from vlmtune.runs.folder import RunFolder


@dataclass(frozen=True)
class Tuned:
    """What a run made, ready to answer."""

    plan: RunPlan
    model: nn.Module
    processor: ProcessorMixin
    features: RowFeatures | None = None
    """Of the rows that it is asked; None where it has its vision tower."""


def plan_here(folder: RunFolder) -> RunPlan:
    """Return the run's plan for the device of this machine."""
    plan = dataclasses.replace(load_plan(folder.plan), cache_features=False)
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
    saved = _saved(folder, plan)
    if plan.method == "full":
        model = load_base(dataclasses.replace(plan, model=str(saved.resolve()))).eval()
    else:
        model = build_tuned(plan, str(saved))
    return Tuned(plan, model.requires_grad_(False), AutoProcessor.from_pretrained(saved))


def _saved(folder: RunFolder, plan: RunPlan) -> Path:
    """Return the folder with what the run has learned."""
    saved = folder.model if plan.method == "full" else folder.adapter
    if not saved.is_dir():
        raise VlmtuneError(
            f"{folder.path} has no {saved.name}: the run has not finished", "continue it: vlmtune train CONFIG --resume"
        )
    return saved


def load_tuned_for(folder: RunFolder, samples: Sequence[Sample], teller: Teller) -> Tuned:
    """Return the run's model for these rows alone: without its tower, where the run had none; it encodes them first.

    Raises:
        VlmtuneError: as for `load_tuned`, and as for `features_of`.
    """
    if not load_plan(folder.plan).cache_features:
        return load_tuned(folder)
    saved = _saved(folder, plan := plan_here(folder))
    processor = AutoProcessor.from_pretrained(saved)
    plan = dataclasses.replace(plan, cache_features=True)
    source = open_model(plan.model, plan.revision, Path("/"))
    [features] = features_of(plan, source, [samples], processor, teller)
    model = build_tuned(plan, str(saved))
    if features.form:
        serve_features(base_of(model), features.form)
    return Tuned(plan, model.requires_grad_(False), processor, features)


def load_untuned(folder: RunFolder) -> Tuned:
    """Return the model as it was before the run, with the processor as the run sets it."""
    from vlmtune.models.processor import load_processor

    plan = plan_here(folder)
    torch.manual_seed(plan.seed)
    return Tuned(plan, load_base(plan).eval().requires_grad_(False), load_processor(plan))
