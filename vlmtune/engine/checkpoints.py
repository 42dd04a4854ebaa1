"""Checkpoints that a kill or a full disk cannot half-write: a marker is written last, old ones go after that."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from vlmtune.errors import VlmtuneError
from vlmtune.files import PARTIAL, as_other_files, remove, sync
from vlmtune.plan.types import RunPlan
from vlmtune.reading import read_regular
from vlmtune.runs.folder import COMPLETE, LOG_BYTES, RunFolder
from vlmtune.runs.manifest import damage, write_manifest
from vlmtune.runs.whole import write_image_size

TRAINED = "trained.safetensors"
"""Method full: the trained weights, by their names in the model."""
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
"""What the libraries raise when they cannot write."""


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the adapter in PEFT's format, without the model card that PEFT makes up."""
    model.create_or_update_model_card = lambda folder: None
    # Left to "auto", PEFT asks the hub about the base model's vocabulary each time.
    model.save_pretrained(folder, save_embedding_layers=False)
    as_other_files(folder)


def save_whole(model: PreTrainedModel, plan: RunPlan, folder: Path) -> None:
    """Write a whole model, and what is needed to ask it as the run does."""
    model.save_pretrained(folder)
    as_other_files(folder)
    write_image_size(folder, plan.image_size)


def save_trained(model: nn.Module, checkpoint: Path) -> None:
    """Write the weights that are trained. save_pretrained would rename them, and loading them back change nothing."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    tensors = {name: parameter.detach().contiguous() for name, parameter in _trained(model)}
    save_file(tensors, checkpoint / TRAINED)
    as_other_files(checkpoint)


def load_trained(model: nn.Module, checkpoint: Path) -> None:
    """Put the weights of `save_trained` back."""
    tensors = load_file(checkpoint / TRAINED)
    with torch.no_grad():
        for name, parameter in _trained(model):
            parameter.copy_(tensors.pop(name))
    assert not tensors, f"{checkpoint} holds weights that are not trained: {sorted(tensors)[:3]}"


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def finish_checkpoint(checkpoint: Path, keep: int, best_step: int | None = None) -> None:
    """Mark `checkpoint` complete once its files are on the disk, then delete all but the newest `keep` and the best."""
    write_manifest(checkpoint, COMPLETE)
    sync(checkpoint.parent)
    markers = checkpoint.parent.glob(f"checkpoint-*/{COMPLETE}")
    done = sorted((one for one in markers if not one.parent.is_symlink()), key=lambda marker: _step(marker.parent))
    for marker in (marker for marker in done[:-keep] if _step(marker.parent) != best_step):
        marker.unlink()
        remove(marker.parent)


def newest_whole(folder: RunFolder, note: Callable[[str], None]) -> Path | None:
    """Return the newest checkpoint that is as it was written; damaged ones are told of and set aside.

    So is a log that is not what was written before it: the run goes on, and its report shows what is left.
    """
    while checkpoint := folder.latest_checkpoint():
        found = damage(checkpoint, COMPLETE)
        if found is None:
            if _logged(folder, checkpoint) != _kept_of_log(checkpoint):
                note(f"{folder.log} is damaged: it is not what was written before {checkpoint.name}")
            return checkpoint
        aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
        remove(aside)
        checkpoint.rename(aside)
        note(f"{checkpoint.name} is damaged ({found}): it is called {aside.name} now, and not used")
    return None


def _logged(folder: RunFolder, checkpoint: Path) -> set[tuple[int, float, float]]:
    """Return step, loss and learning rate of the records before a checkpoint."""
    step = _step(checkpoint)
    return {(one.step, one.loss, one.learning_rate) for one in folder.read_log() if one.step <= step}


def _kept_of_log(checkpoint: Path) -> set[tuple[int, float, float]]:
    """Return the same of what the checkpoint keeps."""
    history = json.loads(read_regular(checkpoint / "trainer_state.json", LOG_BYTES, own=True))["log_history"]
    return {(one["step"], one["loss"], one["learning_rate"]) for one in history if "loss" in one}


def drop_incomplete(folder: RunFolder) -> None:
    """Delete what a kill left of a checkpoint, or of a file beside them, that was being written."""
    for partial in folder.path.glob(f"*{PARTIAL}"):
        if partial.is_file():
            partial.unlink()
    for checkpoint in folder.checkpoints.glob("checkpoint-*"):
        if not checkpoint.is_symlink() and not (checkpoint / COMPLETE).is_file():
            remove(checkpoint)


def disk_full(folder: RunFolder, what: str) -> VlmtuneError:
    """Return the user's error after `what` could not be written."""
    kept = folder.latest_checkpoint()
    return VlmtuneError(
        f"the disk is full: {what} could not be written",
        f"{kept.name} is intact; free some space and continue with --resume"
        if kept
        else "there is no checkpoint yet; free some space and start again",
    )


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))
