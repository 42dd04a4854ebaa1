"""A finished run, loaded for use: its plan on this machine's device, its model, its processor."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import ProcessorMixin

from vlmtune.config.schema import DataSection, ModelSection, TrainingConfig, TrainingSection
from vlmtune.data.features.prepare import Teller, features_of
from vlmtune.data.features.rows import RowFeatures
from vlmtune.data.fit.misfit import misfit
from vlmtune.data.types import Sample
from vlmtune.engine.checkpoints import load_trained
from vlmtune.engine.runtime import probe_device
from vlmtune.hub.source import open_model
from vlmtune.models.build import base_of, build_model, build_tuned, family_of, load_base
from vlmtune.models.features import serve_features
from vlmtune.models.opened.processor import open_processor
from vlmtune.models.processor import load_processor
from vlmtune.plan.decide import make_plan
from vlmtune.plan.file import load_plan
from vlmtune.plan.moved import refuse_moved, with_base
from vlmtune.plan.types import RunPlan
from vlmtune.runs.folder import Learned, RunFolder
from vlmtune.runs.whole import read_image_size

ROOM_FOR_WEIGHTS = 0.8
"""Of what is free on the card; the rest is for what an answer takes."""


@dataclass(frozen=True)
class Tuned:
    """What a run made, ready to answer."""

    plan: RunPlan
    model: nn.Module
    processor: ProcessorMixin
    features: RowFeatures | None = None
    """Of the rows that it is asked; None where it has its vision tower."""


def plan_here(folder: RunFolder, base: str | None = None) -> RunPlan:
    """Return the run's plan for the device of this machine; `base` says where its base model is now.

    Raises:
        VlmtuneError: the base model is not there.
    """
    plan = load_plan(folder.plan)
    if base:
        plan = with_base(plan, base)
    else:
        refuse_moved(plan, folder.path)
    device = probe_device()
    if plan.base_dtype == "fp16" and device.kind == "cpu":
        plan = dataclasses.replace(plan, base_dtype="fp32")
    on_card = device.kind == "cuda"
    kernels = {
        "varlen_attention": plan.varlen_attention and on_card and device.bf16,
        "fused_norms": plan.fused_norms and on_card,
        "fused_elementwise": plan.fused_elementwise and on_card and device.bf16 and not device.no_triton,
    }
    return dataclasses.replace(plan, device=device.kind, **kernels)


def load_tuned(plan: RunPlan, learned: Learned, *, quantized: bool = True, samples: Sequence[Sample] = ()) -> Tuned:
    """Return the model of a plan with what its run has learned; `quantized=False` loads the base in 16 bits.

    Raises:
        VlmtuneError: it cannot take one of the samples that it is to answer, which is told before it loads.
    """
    plan, processor = dataclasses.replace(plan, cache_features=False), processor_of(plan, learned)
    _refuse_misfits(samples, plan, processor)
    if plan.method != "full":
        model = build_tuned(plan, str(learned.path), quantized=quantized)
    elif learned.note:
        model = build_model(plan).eval()
        load_trained(model, learned.path)
    else:
        model = load_base(dataclasses.replace(plan, model=str(learned.path.resolve()))).eval()
    return Tuned(plan, model.requires_grad_(False), processor)


def _refuse_misfits(samples: Sequence[Sample], plan: RunPlan, processor: ProcessorMixin) -> None:
    for sample in samples:
        if problem := misfit(sample, processor, family_of(plan)):
            raise problem


def processor_of(plan: RunPlan, learned: Learned) -> ProcessorMixin:
    """Return the processor as the run used it: checkpoints have none of their own."""
    return load_processor(plan) if learned.note else open_processor(learned.path)


def load_tuned_for(plan: RunPlan, learned: Learned, samples: Sequence[Sample], teller: Teller) -> Tuned:
    """Return the run's model for these rows alone: without its tower, where the run had none; it encodes them first.

    Raises:
        VlmtuneError: as for `features_of`.
    """
    if not plan.cache_features:
        return load_tuned(plan, learned)
    processor = processor_of(plan, learned)
    source = open_model(plan.model, plan.revision, Path("/"))
    [features] = features_of(plan, source, [samples], processor, teller)
    model = build_tuned(plan, str(learned.path))
    if features.form:
        serve_features(base_of(model), features.form)
    return Tuned(plan, model.requires_grad_(False), processor, features)


def load_untuned(plan: RunPlan, samples: Sequence[Sample] = ()) -> Tuned:
    """Return the model as it was before the run, with the processor as the run sets it; raises as `load_tuned`."""
    plan, processor = dataclasses.replace(plan, cache_features=False), load_processor(plan)
    _refuse_misfits(samples, plan, processor)
    torch.manual_seed(plan.seed)
    return Tuned(plan, load_base(plan).eval().requires_grad_(False), processor)


def load_whole(folder: Path, samples: Sequence[Sample] = ()) -> tuple[Tuned, str | None]:
    """Return a model folder such as `merge` writes, and what people are told of it; raises as `load_tuned`.

    In 16 bits, or in 4 where the card does not hold that.
    """
    num_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    is_large = torch.cuda.is_available() and num_bytes > ROOM_FOR_WEIGHTS * torch.cuda.mem_get_info()[0]
    source, method = open_model(str(folder), None, Path.cwd()), "qlora" if is_large else "lora"
    is_packed = source.prequantised is not None
    config = TrainingConfig(
        model=ModelSection(name=str(folder.resolve())),
        data=DataSection(train_path="-", image_size=read_image_size(folder)),
        training=TrainingSection(method="qlora" if is_packed else method, gradient_accumulation_steps=1),
    )
    plan, processor = make_plan(config, source, probe_device()), open_processor(folder)
    _refuse_misfits(samples, plan, processor)
    tuned = Tuned(plan, load_base(plan).eval().requires_grad_(False), processor)
    return tuned, "in 4 bits: the card does not hold it in 16" if is_large and not is_packed else None
