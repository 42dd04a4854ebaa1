"""One attention call for all rows of a pack, and for all windows or images of a tower: torch's varlen kernels.

Registered as attention implementations of transformers. On CUDA only; what they cannot do goes to SDPA: masks other
than causal ones, caches, evaluation one by one.

Shapes: T tokens or patches, R rows, windows or images in them, H heads, D numbers of a head.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from vlmtune.compat.modeling import ATTENTION_FUNCTIONS, ATTN_IMPLEMENTATION
from vlmtune.compat.torch import VARLEN_ATTN
from vlmtune.compat.transformers import CAUSAL_MASK, MASKS
from vlmtune.families.base import Family
from vlmtune.plan.types import RunPlan

varlen_attn = VARLEN_ATTN.get()

MOST_HEAD_SIZE = 256
"""Numbers of a head that the kernel takes: FlashAttention's limit. Gemma 4's full attention has 512."""
PACKS, TOWER = "packs", "flash_of_torch"
"""Of a language model, and of a tower: those that loop over windows call once where the name says flash."""
CAUSAL, BOTH_WAYS = (-1, 0), (-1, -1)
SAYS_GROUPED = "enable_gqa" in inspect.signature(varlen_attn).parameters
"""Older versions take fewer heads of keys and values without being told."""


def attend_by_rows(model: nn.Module, plan: RunPlan, family: Family) -> None:
    """Let language model and tower attend by these kernels where the plan says so, and where it saves calls."""
    if plan.varlen_attention and plan.pack_tokens:
        text = model.get_submodule(family.text)
        if _head_size(text) <= MOST_HEAD_SIZE:
            _attend_by(PACKS, text)
    if plan.varlen_attention and family.tower_loops:
        _attend_by(TOWER, model.get_submodule(family.vision))


def _head_size(part: nn.Module) -> int:
    """Return the numbers of the widest head; not every model keeps them in its layers."""
    return max(getattr(module, "head_dim", None) or 0 for module in part.modules())


def _attend_by(name: str, part: nn.Module) -> None:
    if not hasattr(part, "config"):  # a part that was left out
        return
    AttentionInterface.register(name, _attend)
    AttentionMaskInterface.register(name, MASKS.get()["sdpa"])
    ATTN_IMPLEMENTATION.write(part.config, name)


def starts_of(row_ids_1T: Tensor) -> Tensor:
    """Return where the rows of a pack begin, and where the last one ends: what stands for their mask.

    [1, 1, R + 1, 1]: some models slice their masks, by queries or by keys.
    """
    lengths_R = torch.bincount(row_ids_1T[0])
    starts = torch.zeros(len(lengths_R) + 1, dtype=torch.int32, device=row_ids_1T.device)
    starts[1:] = lengths_R.cumsum(0)
    return starts.view(1, 1, -1, 1)


def is_causal(mask: dict[str, Any]) -> bool:
    """Return whether what the library would make of these arguments is the plain causal mask."""
    return mask["mask_function"] is CAUSAL_MASK.get()


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """As transformers calls it, with tensors [1, H, T, D]; a mask of whole numbers is where rows begin."""
    in_pack = attention_mask is not None and attention_mask.dtype == torch.int32
    starts = attention_mask if in_pack else kwargs.get("cu_seq_lens_q")
    if starts is None:
        return ATTENTION_FUNCTIONS.get()["sdpa"](module, query, key, value, attention_mask, **kwargs)
    # SDPA knows autocast, this kernel does not: a query that was turned in fp32 goes back to the format of products.
    q_THD, k_THD, v_THD = (tensor.squeeze(0).transpose(0, 1).to(value.dtype) for tensor in (query, key, value))
    longest, window = kwargs.get("max_length_q") or longest_of(starts), CAUSAL if in_pack else BOTH_WAYS
    starts = starts.flatten()
    settings: dict[str, Any] = {"scale": kwargs.get("scaling"), "window_size": window}
    if SAYS_GROUPED:
        settings["enable_gqa"] = k_THD.shape[1] != q_THD.shape[1]
    out_THD = varlen_attn(q_THD, k_THD, v_THD, starts, starts, longest, longest, **settings)
    return out_THD[None], None


def longest_of(starts: Tensor) -> int:
    """Return the tokens of the longest row; known after the first layer, because asking makes the card wait."""
    if not hasattr(starts, "longest"):
        starts.longest = int(starts.flatten().diff().max())
    return starts.longest
