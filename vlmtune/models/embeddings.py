"""Tables of embeddings in main memory: rows are looked up there, and those of a batch alone travel to the card.

A table is never on the card, not while the model loads either. It is not pinned, for no card reads it: where the
processor can map the file, rows that no batch asks for are never read.

A row travels once, however often a batch has its token: tokens of images are one and the same, four fifths of a pack of
LLaVA's, and the card waits meanwhile.

The lookup waits for the ids, which are on the card by then. For the first batch of a step this costs nothing: the card
has finished the one before, whose loss was read, and models look up rows before they compute anything.

Shapes: U different tokens of a batch [B, T], H numbers of a row.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from vlmtune.compat.transformers import ACCELERATE_DISPATCH, MODEL_DEVICE
from vlmtune.plan.types import RunPlan

PER_LAYER = "embed_tokens_per_layer"
"""What Gemma 3n and 4 call the table with rows for each layer."""


def tables_of(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return module path → table of token embeddings, without one that is the output head as well."""
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if (module is table or name.rpartition(".")[2] == PER_LAYER) and module.weight is not head.weight
    }


def is_split(plan: RunPlan) -> bool:
    """Return whether a part of the model is in main memory, and the rest on a card."""
    return plan.offload_embeddings and plan.device != "cpu"


def device_map(plan: RunPlan, weightless: Callable[[RunPlan], PreTrainedModel]) -> dict[str, str]:
    """Return module path → device that its weights are loaded to; `weightless` gives the model, to look for tables."""
    return {"": plan.device, **dict.fromkeys(tables_of(weightless(plan)) if is_split(plan) else (), "cpu")}


def as_mapped() -> AbstractContextManager:
    """Return a context in which loading leaves each weight where its device map puts it."""
    return ACCELERATE_DISPATCH.replaced(lambda *args, **kwargs: None)


def keep_in_main_memory(model: PreTrainedModel, plan: RunPlan) -> None:
    """Let the tables take ids from the card and return rows there; those of a weightless model come to the CPU first.

    Where the plan wants them on the card, nothing happens.
    """
    if not plan.offload_embeddings:
        return
    head = model.get_output_embeddings()
    for table in tables_of(model).values():
        if table.weight.is_meta:
            _to_cpu_without_storage(table)
        table.forward = partial(_looked_up, table.forward, head)


def where_it_computes(model: PreTrainedModel) -> AbstractContextManager:
    """Return a context in which the library finds the model where its head is; it would go by the first weight."""
    device = model.get_output_embeddings().weight.device
    return MODEL_DEVICE.replaced(property(lambda part: device))


def tensors_in_main_memory(model: PreTrainedModel, plan: RunPlan) -> list[Tensor]:
    """Return the weights and buffers that never are on the card."""
    if not plan.offload_embeddings:
        return []
    return [tensor for table in tables_of(model).values() for tensor in (*table.parameters(), *table.buffers())]


def _looked_up(library: Callable[[Tensor], Tensor], head: nn.Module, ids_BT: Tensor) -> Tensor:
    """Return the rows [B, T, H] on the card; `library` looks up what is asked for in main memory."""
    card, asked_BT = head.weight.device, ids_BT.cpu()
    if asked_BT.is_meta:  # tokens of an answer that is simulated
        return library(asked_BT).to(card, copy=True)
    different_U = torch.from_numpy(np.unique(asked_BT.numpy()))
    # A copy also where both are one device: what a run on a CPU allocates is then what one on a GPU would.
    rows_UH = library(different_U).to(card, copy=True)
    return F.embedding(torch.searchsorted(different_U.to(card), ids_BT.to(card)), rows_UH)


def _to_cpu_without_storage(table: nn.Module) -> None:
    """Give a table its size on the memory of one number."""
    for name, weight in list(table.named_parameters()):
        one_number = torch.zeros((), dtype=weight.dtype)
        setattr(table, name, nn.Parameter(one_number.expand(weight.shape), requires_grad=False))
    for name, buffer in list(table.named_buffers()):
        setattr(table, name, torch.ones(buffer.shape, dtype=buffer.dtype))
