"""What a run takes of main memory: libraries, weights passing through, batches, data workers, checkpoints. No torch.

Weights come from files that are mapped into memory and go to the card one at a time: their pages are the system's to
drop, and only a weight that changes its number format on the way has a copy of its own. Measured beside real runs by
`make bench-memory`; how far off it is says docs/estimate.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from vlmtune import levers
from vlmtune.data.workers import FETCHED_STEPS, PREFETCHED
from vlmtune.estimate.report import MainMemoryNeed, Share
from vlmtune.families.base import Family, Json
from vlmtune.hardware.main_memory import pinned_block_bytes
from vlmtune.levers.kept_base import WRITTEN_AT_ONCE_BYTES
from vlmtune.plan.types import RunPlan
from vlmtune.units import MIB

if TYPE_CHECKING:
    from torch import Tensor, nn

    Batches = Sequence[dict[str, Tensor]]

LIBRARIES_BYTES = 1000 * MIB
"""Python 3.11, torch 2.15, transformers 5.23, PEFT and bitsandbytes, code included: 866 MiB before the model loads, 910
to 1030 after the first steps, with what the C library keeps of memory that was given back."""
CUDA_BYTES = 1024 * MIB
"""What the driver and CUDA's libraries add to a process that uses a card; assumed, not measured."""
WORKER_BYTES = 64 * MIB
"""Pages that a data worker has of its own: 50 to 54 MiB after 1,100 rows; the others it shares with its parent."""
LOADED_AT_ONCE = 4
"""Weights on their way where none is quantised (transformers core_model_loading.py, GLOBAL_WORKERS)."""
QUANTISING_ON_CPU_BYTES = 12
"""For each number of the weight that is packed, besides itself: three fp32 copies (bitsandbytes 0.50, no card)."""
COPIES_WRITTEN = 2
"""A tensor in main memory and its bytes (safetensors' `save_file`)."""
STATES_OF_ADAM = 2
"""Numbers of 4 bytes for each that learns."""
FORMAT_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
FORMATS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True)
class Weights:
    """What of a model decides how much main memory a run takes."""

    largest_numbers: tuple[int, ...]
    """Of the LOADED_AT_ONCE largest weights, unpacked."""
    largest_packed_numbers: int
    """Of the largest weight that is quantised."""
    total_bytes: int
    trained_bytes: int
    held: tuple[Share, ...]
    """What each lever keeps in main memory."""
    mapped: tuple[Share, ...] = ()
    """The same of levers that keep pages of files there, unless these have another number format."""
    largest_stored_bytes: int = 0
    """Of the largest weight as the run has it."""
    rounded_numbers: int = 0
    """Of a head that is rounded to 8 bits in main memory."""


def weights_of(model: "nn.Module", plan: RunPlan, family: Family, batch_tokens: int) -> Weights:
    """Return the facts of a model as it was built, with storage or without.

    Args:
        model: the base model, its adapters in it.
        batch_tokens: tokens of the largest batch, padding included.
    """
    import torch

    from vlmtune.compat.bitsandbytes import state_of

    parameters = [parameter for name, parameter in model.named_parameters() if ".lora_" not in name]
    packed = [state.shape.numel() for parameter in parameters if (state := state_of(parameter)) is not None]
    plain = [parameter.numel() for parameter in parameters if state_of(parameter) is None]
    kept = [(lever, lever.main_memory_bytes(model, plan, family, batch_tokens)) for lever in levers.LEVERS]
    held, mapped = (
        tuple(Share(lever.name, size) for lever, size in kept if size and lever.main_memory_is_mapped is is_mapped)
        for is_mapped in (False, True)
    )
    return Weights(
        largest_numbers=tuple(sorted(packed + plain, reverse=True)[:LOADED_AT_ONCE]),
        largest_packed_numbers=max(packed, default=0),
        total_bytes=sum(parameter.nbytes for parameter in model.parameters()),
        trained_bytes=sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad),
        held=held,
        mapped=mapped,
        largest_stored_bytes=max(parameter.nbytes for parameter in parameters),
        rounded_numbers=sum(parameter.numel() for parameter in parameters if parameter.dtype == torch.int8),
    )


def stored_format(config: Json) -> str | None:
    """Return the number format that config.json gives for the model's files: bf16, fp16 or fp32; None: it is silent."""
    sections = (config, config.get("text_config") or {})
    names = [str(section[key]) for section in sections for key in ("dtype", "torch_dtype") if section.get(key)]
    return FORMATS.get(names[0].removeprefix("torch.")) if names else None


def need_of(plan: RunPlan, weights: Weights, stored: str | None, batches: "Batches", step_bytes: int) -> MainMemoryNeed:
    """Return what the run takes of main memory.

    Args:
        stored: number format of the model's files, as `stored_format` returns it.
        batches: those of the run, or the largest of them.
        step_bytes: what steps take of the device beside the weights; of main memory where that is the device.
    """
    on_card = plan.device == "cuda"
    always = [Share("libraries", LIBRARIES_BYTES), *weights.held]
    always += weights.mapped if stored != plan.base_dtype else ()
    always += [Share("CUDA", CUDA_BYTES)] if on_card else [Share("weights", weights.total_bytes)]
    loading = [
        *always,
        Share("weights on their way", _on_their_way_bytes(plan, weights, stored)),
        Share("head being rounded", _rounded_bytes(plan, weights, stored)),
    ]
    if plan.cache_quantized:
        written = max(WRITTEN_AT_ONCE_BYTES, weights.largest_stored_bytes)
        loading.append(Share("base being kept", COPIES_WRITTEN * min(written, weights.total_bytes)))
    training = [
        *always,
        Share("batches", _batches_bytes(plan, batches)),
        Share("data workers", plan.num_workers * WORKER_BYTES),
        Share("checkpoint", _saved_bytes(plan, weights)) if on_card else Share("step", step_bytes),
    ]
    highest = max(loading, training, key=_sum)
    parts = tuple(sorted((part for part in highest if part.bytes), key=lambda part: -part.bytes))
    return MainMemoryNeed(_sum(highest), _sum(loading), parts)


def need_at_least(model: "nn.Module", plan: RunPlan, family: Family) -> MainMemoryNeed:
    """Return what a run on a CPU takes without activations and batches: its step takes gradients and Adam's states."""
    weights = weights_of(model, plan, family, batch_tokens=0)
    return need_of(plan, weights, None, [{}], (1 + STATES_OF_ADAM) * weights.trained_bytes)


def _rounded_bytes(plan: RunPlan, weights: Weights, stored: str | None) -> int:
    """Return what a head takes until it is in 8 bits on a card: those, and the head itself unless it is pages."""
    on_card, own = plan.device == "cuda", stored != plan.base_dtype
    return weights.rounded_numbers * (on_card + own * FORMAT_BYTES[plan.base_dtype])


def _on_their_way_bytes(plan: RunPlan, weights: Weights, stored: str | None) -> int:
    """Return the copies that exist at a time of weights that change their format before they reach their place."""
    if plan.prequantised:  # they change it in their place
        return 0
    if plan.device != "cuda":
        # A changed weight stays where it is then, and is counted there; quantising takes copies.
        return weights.largest_packed_numbers * (FORMAT_BYTES[plan.base_dtype] + QUANTISING_ON_CPU_BYTES)
    if stored == plan.base_dtype:
        return 0
    at_once = 1 if plan.quant_type else LOADED_AT_ONCE
    return sum(weights.largest_numbers[:at_once]) * FORMAT_BYTES[plan.base_dtype]


def _batches_bytes(plan: RunPlan, batches: "Batches") -> int:
    """Return what fetched batches take: those of the steps, and those that workers have ready."""
    sizes = [[tensor.nbytes for tensor in batch.values()] for batch in batches]
    ready = plan.num_workers * PREFETCHED * max(map(sum, sizes))
    if plan.device == "cuda":
        sizes = [[pinned_block_bytes(num_bytes) for num_bytes in batch] for batch in sizes]
    return FETCHED_STEPS * passes_per_step(plan, batches) * max(map(sum, sizes)) + ready


def passes_per_step(plan: RunPlan, batches: "Batches") -> int:
    """Return the batches of a step; of packs as many as there would be of the one with the most rows."""
    if not plan.pack_tokens:
        return plan.passes_per_step
    from vlmtune.models.attention.packs import num_rows

    return ceil(plan.rows_per_step / plan.num_gpus / max((num_rows(batch) for batch in batches if batch), default=1))


def _saved_bytes(plan: RunPlan, weights: Weights) -> int:
    """Return what comes back from the card to be written: all at once (safetensors' `save_file`)."""
    return weights.total_bytes if plan.method == "full" else weights.trained_bytes


def _sum(parts: list[Share]) -> int:
    return sum(part.bytes for part in parts)
