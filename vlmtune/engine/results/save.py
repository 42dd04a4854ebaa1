"""The result of a run on disk: all of it, or nothing."""

from pathlib import Path

import torch
from transformers import ProcessorMixin

from vlmtune.engine.checkpoints import save_adapter, save_whole
from vlmtune.engine.evaluate import serve_ends
from vlmtune.files import PARTIAL, remove
from vlmtune.models.processor import save_for_servers, save_processor
from vlmtune.plan.types import RunPlan
from vlmtune.runs.folder import RunFolder
from vlmtune.runs.manifest import write_manifest


def save_tuned(model: torch.nn.Module, processor: ProcessorMixin, plan: RunPlan, folder: RunFolder) -> None:
    """Write the adapter (or the whole model) with the processor as it was used; all of it or nothing."""
    partial = partial_of(plan, folder)
    target = result_of(plan, folder)
    folder.refuse_removed()
    remove(partial)
    if plan.method == "full":
        serve_ends(model, processor)
        save_whole(model, plan, partial)
        save_for_servers(processor, plan, partial)
    else:
        save_adapter(model, partial)
        save_processor(processor, partial)
    write_manifest(partial)
    remove(target)
    partial.rename(target)


def result_of(plan: RunPlan, folder: RunFolder) -> Path:
    """Return where the result lies."""
    return folder.model if plan.method == "full" else folder.adapter


def partial_of(plan: RunPlan, folder: RunFolder) -> Path:
    """Return where the result lies while it is being written."""
    target = result_of(plan, folder)
    return target.with_name(target.name + PARTIAL)
