"""Adapter + 16-bit base → one model, saved, loaded again, and compared with what it was merged from.

A base whose files are in 4 bits has no other numbers: it is unpacked to 16 bits, and keeps the rounding of its files.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from PIL import Image
from torch import Tensor, nn

from vlmtune.data.encode import encode
from vlmtune.data.types import ImageRef, Sample, Turn
from vlmtune.engine.checkpoints import WRITE_ERRORS, save_whole
from vlmtune.engine.evaluate import serve_ends
from vlmtune.engine.tuned import load_tuned
from vlmtune.errors import VlmtuneError
from vlmtune.files import PARTIAL, is_disk_full, remove
from vlmtune.models.build import family_of, load_base
from vlmtune.models.processor import save_for_servers
from vlmtune.plan.types import RunPlan
from vlmtune.runs.folder import Learned

BOUNDS = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}
"""Largest allowed |difference of logits| / |largest logit|. Merging rounds base + adapter to the base's format once."""

NEW_FOLDER = "give a new folder"


@dataclass(frozen=True)
class MergeProof:
    """How far the merged model is from base + adapter on one sample."""

    largest_difference: float
    largest_logit: float
    bound: float
    same_best_tokens: float
    """Share of positions at which both models prefer the same token."""
    unpacked_base: bool
    """The base's files are in 4 bits: the merged model keeps their rounding."""

    @property
    def relative(self) -> float:
        """Largest difference as a share of the largest logit."""
        return self.largest_difference / self.largest_logit

    @property
    def holds(self) -> bool:
        """Whether the difference is within the bound."""
        return self.relative <= self.bound


def merge(plan: RunPlan, learned: Learned, out_dir: Path) -> MergeProof:
    """Write the merged model and its processor to `out_dir` and return the proof; on the CPU, whatever the machine.

    Raises:
        VlmtuneError: nothing to merge, `out_dir` taken, or the difference above the bound (then nothing is left).
    """
    plan = dataclasses.replace(plan, device="cpu", cache_features=False)
    if plan.method == "full" and not learned.note:
        raise VlmtuneError(f"method full has no adapter to merge: {learned.path} is the whole model already")
    partial = _place_for(out_dir)
    tuned = load_tuned(plan, learned, quantized=False)
    inputs = _probe(plan, tuned.processor)
    expected = _logits(tuned.model, inputs)
    whole = tuned.model.merge_and_unload() if isinstance(tuned.model, PeftModel) else tuned.model
    serve_ends(whole, tuned.processor)
    try:
        save_for_servers(tuned.processor, plan, partial)
        save_whole(whole, plan, partial)
    except WRITE_ERRORS as error:
        if not is_disk_full(error):
            raise
        remove(partial)
        way_out = "free some space, or give a folder on another disk"
        raise VlmtuneError(f"the disk is full: {out_dir} could not be written", way_out) from None
    del tuned, whole
    saved = dataclasses.replace(plan, model=str(partial.resolve()), prequantised=False)
    merged = _logits(load_base(saved, quantized=False).eval(), inputs)
    proof = _compare(expected, merged, plan)
    if not proof.holds:
        remove(partial)
        raise VlmtuneError(
            f"the merged model differs from base + adapter by {proof.relative:.2e} of the largest logit, "
            f"above the bound {proof.bound:.0e}",
            "keep using the adapter; please report the model and versions.json",
        )
    if out_dir.exists():
        out_dir.rmdir()
    partial.rename(out_dir)
    return proof


def _place_for(out_dir: Path) -> Path:
    """Return the folder beside `out_dir` that is renamed when all is written; raise where neither can be made."""
    if out_dir.resolve() == Path.cwd():
        raise VlmtuneError(f"{out_dir} is the folder that the command runs in", NEW_FOLDER)
    partial = out_dir.with_name(out_dir.name + PARTIAL)
    try:
        if out_dir.exists() and any(out_dir.iterdir()):
            raise VlmtuneError(f"{out_dir} is not empty", NEW_FOLDER)
        remove(partial)
        partial.mkdir(parents=True)
        partial.rmdir()
    except OSError as error:
        raise VlmtuneError(f"{out_dir} cannot be written: {error.strerror}", NEW_FOLDER) from None
    return partial


def _probe(plan: RunPlan, processor) -> dict[str, Tensor]:
    """A row with a picture that has edges and gradients."""
    image = Image.linear_gradient("L").convert("RGB").resize((plan.image_size or 336,) * 2)
    sample = Sample(
        (Turn("user", (ImageRef(path="probe"), "Describe it.")), Turn("assistant", ("A gradient.",))), "probe"
    )
    return encode(sample, [image], processor, family_of(plan)).tensors


def _logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits.float()


def _compare(expected: Tensor, merged: Tensor, plan: RunPlan) -> MergeProof:
    return MergeProof(
        largest_difference=float((expected - merged).abs().max()),
        largest_logit=float(expected.abs().max()),
        bound=BOUNDS[plan.base_dtype],
        same_best_tokens=float((expected.argmax(-1) == merged.argmax(-1)).float().mean()),
        unpacked_base=plan.prequantised,
    )
