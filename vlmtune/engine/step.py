"""The training step's mathematics, shared by training, evaluation and the memory estimate.

Shapes: B batch rows, T tokens, H hidden size, V vocabulary, N labelled positions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlmtune.models.build import DTYPES, base_of
from vlmtune.plan import RunPlan

IGNORED = -100


def forward_loss(
    model: nn.Module, batch: dict[str, Tensor], plan: RunPlan, num_items: Tensor | int | None = None
) -> Tensor:
    """Return the scalar cross-entropy of the labelled tokens: their sum / `num_items`, or their mean.

    Logits exist at labelled positions only, `plan.loss_chunk_tokens` at a time, never [B, T, V]. Equal to the
    library's own loss and gradients up to rounding (held by a test for each family).

    Args:
        batch: what the collator made; `labels` [B, T] with -100 where nothing is learned.
        num_items: labelled tokens of all batches that make one optimizer step.
    """
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    base = base_of(model)
    device_type = batch["labels"].device.type
    autocast_dtype = DTYPES[plan.autocast_dtype] if plan.autocast_dtype else None
    with torch.autocast(device_type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
        hidden_BTH = base.model(**inputs, use_cache=False)[0]
        # The token at t is predicted from the hidden state at t - 1.
        labels_BT = batch["labels"][:, 1:]
        labelled_BT = labels_BT != IGNORED
        hidden_NH, labels_N = hidden_BTH[:, :-1][labelled_BT], labels_BT[labelled_BT]
        loss = _chunked_sum(base, hidden_NH, labels_N, plan.loss_chunk_tokens)
    return loss / (num_items if num_items is not None else labels_N.numel())


def _chunked_sum(base: nn.Module, hidden_NH: Tensor, labels_N: Tensor, chunk_tokens: int) -> Tensor:
    """Return the summed cross-entropy; with several chunks each one's logits are recomputed in the backward pass."""
    head = base.get_output_embeddings()
    softcap = getattr(base.config.get_text_config(), "final_logit_softcapping", None)
    if labels_N.numel() <= chunk_tokens:
        return _loss_sum(hidden_NH, labels_N, head, softcap)
    pieces = zip(hidden_NH.split(chunk_tokens), labels_N.split(chunk_tokens), strict=True)
    return sum(checkpoint(_loss_sum, hidden, labels, head, softcap, use_reentrant=False) for hidden, labels in pieces)


def _loss_sum(hidden_NH: Tensor, labels_N: Tensor, head: nn.Module, softcap: float | None) -> Tensor:
    logits_NV = head(hidden_NH).float()
    if softcap is not None:
        logits_NV = torch.tanh(logits_NV / softcap) * softcap
    return F.cross_entropy(logits_NV, labels_N, reduction="sum")
