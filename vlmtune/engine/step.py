"""The training step's mathematics, shared by training, evaluation and the memory estimate.

Shapes: B batch rows, T tokens, H hidden size, V vocabulary, N labelled positions.
"""

from collections.abc import Callable, Iterable
from functools import partial
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlmtune.models.attention.packs import PACKED, placed, rows_apart
from vlmtune.models.build import DTYPES, base_of
from vlmtune.plan.types import RunPlan

IGNORED = -100
LABELLED = "labelled"
"""Key under which a batch carries the places [N], among its B * T, that labelled tokens are predicted from."""
Head = Callable[[Tensor], Tensor]


def forward_loss(
    model: nn.Module, batch: dict[str, Tensor], plan: RunPlan, num_items: Tensor | int | None = None
) -> Tensor:
    """Return the scalar cross-entropy of the labelled tokens: their sum / `num_items`, or their mean.

    Logits exist at labelled positions only, `plan.loss_chunk_tokens` at a time, never [B, T, V]. Equal to the
    library's own loss and gradients up to rounding (held by a test for each family).

    Args:
        batch: what the collator made, best with what `ready` adds; `labels` [B, T] with -100 where nothing is learned.
        num_items: labelled tokens of all batches that make one optimizer step.
    """
    base = base_of(model)
    batch = ready(base, batch)
    inputs = {key: value for key, value in batch.items() if key not in ("labels", PACKED, LABELLED)}
    device_type = batch["labels"].device.type
    autocast_dtype = DTYPES[plan.autocast_dtype] if plan.autocast_dtype else None
    with torch.autocast(device_type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
        with rows_apart(batch.get(PACKED)):
            hidden_BTH, head = hidden_states(base, inputs)
        hidden_NH = hidden_BTH.flatten(0, 1).index_select(0, batch[LABELLED])
        labels_N = batch["labels"].flatten().index_select(0, batch[LABELLED] + 1)
        loss = _chunked_sum(head, hidden_NH, labels_N, plan.loss_chunk_tokens)
    return loss / (num_items if num_items is not None else labels_N.numel())


def ready(base: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch with what can be worked out before it comes to the card: positions, and where labels are.

    How many there are is a number that the processor would have to read there: it would wait for all that goes before,
    and have nothing handed over in advance for what comes behind.
    """
    batch = placed(base, batch)
    if LABELLED in batch:
        return batch
    # The token at t is predicted from the hidden state at t - 1.
    labelled_BT = F.pad(batch["labels"][:, 1:] != IGNORED, (0, 1))
    return {**batch, LABELLED: labelled_BT.flatten().nonzero()[:, 0]}


def drop_gradients(parameters: Iterable[Tensor]) -> None:
    """Let parameters have no gradients: a model's own `zero_grad` looks for them in all of its modules."""
    for parameter in parameters:
        parameter.grad = None


def hidden_states(base: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Head]:
    """Return what the model gives to its output head [B, T, H], and the head: hidden states [N, H] -> logits [N, V].

    The model's own forward runs, whatever its parts are called; only the head is skipped. Where the model changes the
    logits after the head (caps or scales them), so does the head returned here.
    """
    head = base.get_output_embeddings()
    seen: list[Tensor] = []

    def skip(hidden_BTH: Tensor) -> Tensor:
        seen.append(hidden_BTH)
        seen.append(hidden_BTH[:, :1])
        return seen[1]

    with patch.object(head, "forward", skip):
        logits = base(**inputs, use_cache=False).logits
    hidden_BTH, given = seen
    return hidden_BTH, head if logits is given else partial(_own_logits, _owner(base, head))


class _BodyOutput:
    """What a model's body returns, with the last hidden states and nothing else."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None


def _own_logits(owner: nn.Module, hidden_NH: Tensor) -> Tensor:
    """Return the logits as the model's own forward makes them of these hidden states."""
    with patch.object(owner.model, "forward", lambda *args, **kwargs: _BodyOutput(hidden_NH[None])):
        # Some look at the number of ids.
        ids_1N = torch.zeros(1, len(hidden_NH), dtype=torch.long, device=hidden_NH.device)
        return owner(input_ids=ids_1N, use_cache=False).logits[0]


def _owner(base: nn.Module, head: nn.Module) -> nn.Module:
    """Return the module that holds the head: the model, or the language model inside it."""
    path = next(name for name, module in base.named_modules() if module is head)
    return base.get_submodule(path.rpartition(".")[0])


def _chunked_sum(head: Head, hidden_NH: Tensor, labels_N: Tensor, chunk_tokens: int) -> Tensor:
    """Return the summed cross-entropy; with several chunks each one's logits are recomputed in the backward pass."""
    if labels_N.numel() <= chunk_tokens:
        return _loss_sum(hidden_NH, labels_N, head)
    pieces = zip(hidden_NH.split(chunk_tokens), labels_N.split(chunk_tokens), strict=True)
    return sum(checkpoint(_loss_sum, hidden, labels, head, use_reentrant=False) for hidden, labels in pieces)


def _loss_sum(hidden_NH: Tensor, labels_N: Tensor, head: Head) -> Tensor:
    return F.cross_entropy(head(hidden_NH).float(), labels_N, reduction="sum")
