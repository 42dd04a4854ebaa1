"""RunPlan + card → MemoryReport: the step simulated, its log replayed through the allocator, the peak taken apart."""

import dataclasses
import time
from collections import Counter
from dataclasses import dataclass

from torch import Tensor

from vlmtune.config.schema import TrainingConfig
from vlmtune.data.collate import WHERE, Collator, collate
from vlmtune.data.dataset import TuneDataset, measure_rows, refuse_too_long
from vlmtune.data.encode import Encoded
from vlmtune.data.types import Sample
from vlmtune.estimate.allocator import AllocatorSettings, Replay, replay, round_size
from vlmtune.estimate.cards import Card
from vlmtune.estimate.cuda import hidden_of
from vlmtune.estimate.inputs import largest_row
from vlmtune.estimate.record import Log
from vlmtune.estimate.simulate import simulate
from vlmtune.models.build import family_of
from vlmtune.models.catalog import find_entry
from vlmtune.models.processor import load_processor
from vlmtune.models.source import ModelSource
from vlmtune.plan import Device, RunPlan, make_plan
from vlmtune.report import library_versions
from vlmtune.report_memory import parts_of_peak

STEPS = 2
"""The optimizer's states exist from the end of the first step on: the second is the steady one."""
SMALLEST_SHARE_BYTES = 2**20


@dataclass(frozen=True)
class Share:
    """One part of the peak."""

    name: str
    bytes: int


@dataclass(frozen=True)
class PeakAt:
    """What was being done when the most memory was allocated."""

    phase: str
    op: str
    module: str


@dataclass(frozen=True)
class MemoryReport:
    """What a plan needs on a card. Sizes in bytes; `breakdown` sums to `device_total_bytes`."""

    model: str
    preset: str | None
    gpu: str
    fits: bool
    peak_reserved_bytes: int
    """What `torch.cuda.max_memory_reserved` will show."""
    peak_allocated_bytes: int
    """What `torch.cuda.max_memory_allocated` will show."""
    device_total_bytes: int
    """What the driver will show for the process: reserved, and the CUDA context."""
    budget_bytes: int
    """What PyTorch may reserve on this card: its memory less context and reserve."""
    breakdown: tuple[Share, ...]
    parts: dict[str, int]
    """The allocated peak by when it was taken, as training measures it: `parts_of_peak`."""
    peak_at: PeakAt
    worst_row: str
    """`train.jsonl:12`, or that it was made up as large as the config allows."""
    tokens: dict[str, int]
    flops_per_row: float
    """Floating-point operations of forward, recomputation and backward for one row as long as the longest."""
    seconds: float
    versions: dict[str, str]


@dataclass(frozen=True)
class Target:
    """The card that an estimate is for."""

    card: Card
    budget_bytes: int
    expandable_segments: bool


def estimate(
    plan: RunPlan, steps: list[list[dict[str, Tensor]]], row: Encoded, target: Target, preset: str | None
) -> MemoryReport:
    """Return the memory that `plan` needs: `steps` are the first optimizer steps' batches, `row` the longest one."""
    started = time.perf_counter()
    log = simulate(plan, steps, hidden_of(target.card.sm))
    settings = AllocatorSettings(expandable_segments=target.expandable_segments)
    free = replay(log.events, settings)
    held = AllocatorSettings(
        expandable_segments=target.expandable_segments,
        capacity_bytes=target.budget_bytes,
        device_total_bytes=target.card.nominal_bytes,
    )
    fits = replay(log.events, held).out_of_memory_at is None
    return MemoryReport(
        model=plan.model_name,
        preset=preset,
        gpu=target.card.key,
        fits=fits,
        peak_reserved_bytes=free.peak_reserved_bytes,
        peak_allocated_bytes=free.peak_allocated_bytes,
        device_total_bytes=free.peak_reserved_bytes + target.card.context_bytes,
        budget_bytes=target.budget_bytes,
        breakdown=_breakdown(log, free, target.card),
        parts=_parts(log, free, settings),
        peak_at=_peak_at(log, free),
        worst_row=row.where,
        tokens={
            "text": row.num_text_tokens,
            "image": row.num_image_tokens,
            "total": row.num_text_tokens + row.num_image_tokens,
        },
        flops_per_row=log.flops / log.num_rows,
        seconds=round(time.perf_counter() - started, 1),
        versions=library_versions(),
    )


def estimate_largest(config: TrainingConfig, source: ModelSource, target: Target) -> MemoryReport:
    """Return what `config` needs for the largest row it allows, without data, tokenizer and weights."""
    plan = _plan_for(config, source, target)
    row = largest_row(plan, source, family_of(plan))
    return _estimate_worst(plan, [row] * plan.batch_size, 0, target, config.preset)


def estimate_rows(config: TrainingConfig, source: ModelSource, samples: list[Sample], target: Target) -> MemoryReport:
    """Return what `config` needs for the longest of its rows; needs the model's tokenizer, but no weights.

    Raises:
        VlmtuneError: the processor cannot be loaded, or a row is refused, as in training.
    """
    return estimate_plan(_plan_for(config, source, target), source, samples, target, config.preset)


def estimate_plan(
    plan: RunPlan, source: ModelSource, samples: list[Sample], target: Target, preset: str | None = None
) -> MemoryReport:
    """Return what a plan that is about to run needs for the longest of its rows; raises as `estimate_rows` does."""
    family, processor = family_of(plan), load_processor(plan)
    measured = measure_rows(samples, processor, family, plan, source)
    refuse_too_long(measured, plan)
    worst = sorted(range(len(samples)), key=lambda index: -measured[index].total)[: plan.batch_size]
    rows = TuneDataset(samples, processor, family, plan)
    pad = Collator(processor).pad_token_id
    return _estimate_worst(plan, [rows[index] for index in worst], pad, target, preset)


def _plan_for(config: TrainingConfig, source: ModelSource, target: Target) -> RunPlan:
    card = target.card
    device = Device("cuda", card.name, bf16=card.sm >= (8, 0), total_bytes=card.total_bytes_linux)
    plan = make_plan(config, source, device)
    entry = find_entry(source.location)
    return dataclasses.replace(plan, model=str(entry.folder)) if entry else plan


def _estimate_worst(plan: RunPlan, rows: list[Encoded], pad: int, target: Target, preset: str | None) -> MemoryReport:
    """Estimate with the worst batch in each place of a step: its gradients beside those of the batch before it."""
    batch = collate(rows, pad)
    batch.pop(WHERE)
    step = [batch] * plan.gradient_accumulation_steps
    return estimate(plan, [step] * STEPS, rows[0], target, preset)


def _breakdown(log: Log, peak: Replay, card: Card) -> tuple[Share, ...]:
    """Return what was allocated at the peak by kind, largest first, then what lies between and around it."""
    live: dict[int, int] = {}
    for handle, num_bytes in log.events[: peak.peak_allocated_at + 1]:
        if handle > 0:
            live[handle] = round_size(num_bytes)
        else:
            live.pop(-handle, None)
    kinds: Counter[str] = Counter()
    for handle, num_bytes in live.items():
        kinds[log.tags[handle][0]] += num_bytes
    allocated = sum(kinds.values())
    large = [Share(name, num_bytes) for name, num_bytes in kinds.most_common() if num_bytes >= SMALLEST_SHARE_BYTES]
    shares = [*large, Share("other", allocated - sum(share.bytes for share in large))]
    shares.append(Share("reserved but free (fragmentation)", peak.peak_reserved_bytes - allocated))
    shares.append(Share("CUDA context", card.context_bytes))
    return tuple(shares)


def _parts(log: Log, peak: Replay, settings: AllocatorSettings) -> dict[str, int]:
    def allocated_at(mark: str) -> int:
        return replay(log.events[: log.marks.get(mark, len(log.events))], settings).allocated_at_end_bytes

    return parts_of_peak(allocated_at("step 1"), allocated_at("step 2"), peak.peak_allocated_bytes)


def _peak_at(log: Log, peak: Replay) -> PeakAt:
    handle = next(h for h, _ in reversed(log.events[: peak.peak_allocated_at + 1]) if h > 0)
    phase = [name for name, first in log.marks.items() if first <= peak.peak_allocated_at]
    _, operation, module = log.tags[handle]
    return PeakAt(phase[-1] if phase else "load", operation, module)
