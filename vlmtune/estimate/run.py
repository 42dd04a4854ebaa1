"""A plan and a card → MemoryReport. No torch at the top: an estimate that is kept needs none."""

import dataclasses
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from vlmtune.estimate.cache import base_is_kept, cached
from vlmtune.estimate.cannot_tell import cannot_tell
from vlmtune.estimate.given_rows import GivenRows
from vlmtune.estimate.main_memory import Weights, need_of, passes_per_step, stored_format
from vlmtune.estimate.report import MainMemoryNeed, MemoryReport, Phase, Share, StepTime, WithoutWorst, would_swap
from vlmtune.estimate.work import Work
from vlmtune.hardware.cards import Card, Target
from vlmtune.hardware.communication import communication_bytes
from vlmtune.hub.source import ModelSource
from vlmtune.plan.types import RunPlan
from vlmtune.runs.versions import library_versions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vlmtune.data.encode import Encoded
    from vlmtune.data.sources.takes import Takes
    from vlmtune.estimate.allocator.peaks import Peaks
    from vlmtune.estimate.simulate.record import Hidden, Log
    from vlmtune.estimate.timing.predict import RunSizes

SMALLEST_SHARE_BYTES = 2**20
WORST_SHARE = 100
"""One row in so many is looked at as an outlier."""


def estimate_largest(plan: RunPlan, source: ModelSource, target: Target, *, fast: bool = False) -> MemoryReport:
    """Return what a plan needs for the largest row it allows, without data, tokenizer and weights."""

    def made() -> MemoryReport:
        from vlmtune.data.batches.packs import collate_of
        from vlmtune.data.collate import collate
        from vlmtune.estimate.answers import HeldOutRows
        from vlmtune.estimate.features import Encoding, rows_in_training
        from vlmtune.estimate.simulate.inputs import largest_rows
        from vlmtune.estimate.simulate.steps import collated, made_up_packs, made_up_steps, sizes_of
        from vlmtune.models.build import family_of

        with cannot_tell(plan):
            family = family_of(plan)
            rows = largest_rows(plan, source, family)
            served, tower = rows_in_training(rows, plan)
            lengths = [row.labels.shape[1] for row in rows]
            chosen = made_up_packs(plan, lengths, fast) if plan.pack_tokens else made_up_steps(plan, fast)
            steps = collated(chosen, served, collate_of(plan, lambda batch: collate(batch, 0)))
            sizes = sizes_of(chosen, plan, lengths, [row.num_image_tokens for row in rows])
            encoding = Encoding(tower, rows[0]) if tower else None
            held_out = HeldOutRows(served[0], 1, plan.generate_rows) if plan.generate_rows else None
            work = Work(plan, source, steps, sizes, served[0], [served[0]], fast, encoding, held_out)
            return _estimate(work, target)

    report = cached([*_decided_by(plan, source, target), fast], made).with_graphs(plan.pack_tokens // plan.pack_step)
    return _timed(_held_to(report, target), target, plan, None)


def estimate_plan(
    plan: RunPlan, source: ModelSource, rows: GivenRows, target: Target, *, fast: bool = False
) -> MemoryReport:
    """Return what a plan needs for the longest of its rows; needs the model's tokenizer, but no weights.

    Raises:
        VlmtuneError: the processor cannot be loaded, or a row is refused, as in training; or nobody can tell.
    """
    return _Rows(plan, source, rows).estimate(0, target, fast)


def without_worst(plan: RunPlan, source: ModelSource, rows: GivenRows, target: Target) -> WithoutWorst | None:
    """Return what a plan would need without the longest hundredth of its rows; None where that saves nothing."""
    left_out = len(rows.samples) // WORST_SHARE
    ordered = _Rows(plan, source, rows)
    if left_out == 0 or ordered.most_tokens(left_out) == ordered.most_tokens(0):
        return None
    with_all, without = (ordered.estimate(skipped, target, fast=True).peak_reserved_bytes for skipped in (0, left_out))
    return WithoutWorst(left_out, ordered.most_tokens(left_out), with_all - without)


class _Rows:
    """The rows of a plan, the longest first."""

    def __init__(self, plan: RunPlan, source: ModelSource, rows: GivenRows) -> None:
        from vlmtune.data.collate import Collator
        from vlmtune.data.measure.lengths import refuse_too_long
        from vlmtune.estimate.held_out import HeldOut
        from vlmtune.estimate.learned import learned_of

        self.plan, self.source, self.given = plan, source, rows
        self.lengths = rows.lengths(plan, source)
        refuse_too_long(self.lengths, plan)
        self.learned = learned_of(self.lengths, plan, source.facts(plan.model_name))
        self.rows = rows.dataset(plan)
        self.held_out = HeldOut(plan, source, rows) if rows.held_out.samples else None
        self.collator = Collator(rows.processor(plan))
        self.order: list[int] = (-self.lengths.total).argsort(kind="stable").tolist()

    def most_tokens(self, skipped: int) -> int:
        """Return the tokens of the longest row but for so many."""
        return int(self.lengths.total[self.order[skipped]])

    def estimate(self, skipped: int, target: Target, fast: bool) -> MemoryReport:
        """Return what the plan needs without its longest rows."""
        kept = sorted(self.order[skipped:])
        with cannot_tell(self.plan):
            work = self._work(kept, target, fast)
            decided_by = [*_decided_by(self.plan, self.source, target), work.digest()]
            report = cached(decided_by, lambda: _estimate(work, target))
            report = report.with_graphs(len({*self.sizes(kept).sizes.tokens.tolist()}))
            return _timed(_held_to(report, target), target, self.plan, partial(self.sizes, kept))

    def sizes(self, kept: list[int] | None = None) -> "RunSizes":
        """Return how large the batches of the run are, over some of its rows, or all."""
        from vlmtune.estimate.simulate.steps import sizes_of_run

        kept = sorted(self.order) if kept is None else kept
        return sizes_of_run(self.plan, self.lengths.total[kept].tolist(), self.lengths.image[kept], self._takes(kept))

    def _takes(self, kept: list[int]) -> "Takes | None":
        from vlmtune.data.sources.shares import rows_at

        return self.given.takes(self.plan, rows_at(self.lengths.samples, kept))

    def _work(self, kept: list[int], target: Target, fast: bool) -> Work:
        from torch.utils.data import Subset

        from vlmtune.data.batches.packs import collate_of
        from vlmtune.estimate.features import Encoding, rows_in_training
        from vlmtune.estimate.simulate.steps import collated, fewest_steps, sizes_of, telling_steps

        lengths, expandable = self.lengths.total[kept].tolist(), target.expandable_segments
        steps_with = fewest_steps if fast else partial(telling_steps, expandable_segments=expandable)
        learned = dataclasses.replace(self.learned, tokens=self.learned.tokens[kept])
        chosen = steps_with(self.plan, lengths, takes=self._takes(kept), learned=learned)
        rows, tower = rows_in_training(Subset(self.rows, kept), self.plan)
        seen = self._most_seen(kept) if tower else None
        encoding = Encoding(tower, seen, len(kept) + len(self.given.held_out.samples)) if tower and seen else None
        steps = collated(chosen, rows, collate_of(self.plan, self.collator))
        longest = rows[lengths.index(max(lengths))]
        served = tower.served if tower else lambda row: row
        evaluated = [*map(served, self.held_out.needing_most(learned))] if self.held_out else [longest]
        asked = self.held_out.asked(served) if self.held_out else None
        sizes = sizes_of(chosen, self.plan, lengths, self.lengths.image[kept])
        return Work(self.plan, self.source, steps, sizes, longest, evaluated, fast, encoding, asked)

    def _most_seen(self, kept: list[int]) -> "Encoded | None":
        """Return the row with the most image tokens, with its pixels; None where no row has an image."""
        most = kept[int(self.lengths.image[kept].argmax())]
        trained, held_out = self.lengths.image[most], self.held_out
        if held_out and held_out.lengths.image.max() > trained:
            return held_out.rows[held_out.lengths.most_pixels()]
        return self.rows[most] if trained else None


def _decided_by(plan: RunPlan, source: ModelSource, target: Target) -> list[Any]:
    """Return what decides an estimate besides the batches: plan, the model's own configs, and the card.

    The configs beside the plan: a local model can be edited in its place. Of the card all but the budget, which
    changes with what else runs on it, as main memory does.
    """
    card = dataclasses.asdict(dataclasses.replace(target, budget_bytes=0, main_memory_bytes=None))
    files = [source.config, source.preprocessor, source.prequantised, base_is_kept(plan)]
    return [dataclasses.asdict(plan), *files, card]


def _held_to(report: MemoryReport, target: Target) -> MemoryReport:
    """Return the report with the verdict for this budget and main memory; loading or encoding may take more."""
    budget, available = target.budget_bytes, target.main_memory_bytes
    fits = report.most_bytes <= budget and not would_swap(report.main_memory, available)
    return dataclasses.replace(report, budget_bytes=budget, main_memory_available_bytes=available, fits=fits)


def _timed(report: MemoryReport, target: Target, plan: RunPlan, sizes: "Callable[[], RunSizes] | None") -> MemoryReport:
    """Return the report with what the steps of the run take, where that is known; no sizes: all rows are largest."""
    if not report.batches:
        return report
    from vlmtune.estimate.timing.predict import of_largest, step_time

    run = sizes() if sizes else of_largest(report, plan)
    return dataclasses.replace(report, time=step_time(report, run, plan.rows_per_step, target.card))


def pace(
    plan: RunPlan, source: ModelSource, rows: GivenRows | None, target: Target, known: "Sequence[MemoryReport]"
) -> StepTime | None:
    """Return what a step takes, predicted from estimates of plans that divide its rows otherwise."""
    from vlmtune.estimate.timing.predict import as_graphs

    batches = sum((report.batches for report in known), ())
    one = dataclasses.replace(known[0], batches=as_graphs(batches) if plan.cuda_graphs else batches)
    return _timed(one, target, plan, _Rows(plan, source, rows).sizes if rows else None).time


def _estimate(work: Work, target: Target) -> MemoryReport:
    """Return the report; what this card and this machine have, and `fits`, are left to `_held_to`."""
    from vlmtune.estimate.timing.predict import spent_by

    started = time.perf_counter()
    plan, fast = work.plan, work.fast
    log = _simulated(work, target)
    peaks = _peaks(log, target)
    row = work.worst_at(peaks.highest)
    communication = communication_bytes(plan.num_gpus, plan.sharded)
    batches, update = spent_by(log, work.sizes, target.card)
    return MemoryReport(
        model=plan.model_name,
        preset=None,
        gpu=target.card.key,
        fits=False,
        peak_reserved_bytes=peaks.reserved_bytes,
        peak_allocated_bytes=peaks.allocated_bytes,
        device_total_bytes=peaks.reserved_bytes + target.card.context_bytes + communication,
        budget_bytes=0,
        breakdown=_breakdown(peaks, target.card, communication, plan),
        parts=peaks.parts,
        peak_at=peaks.at[peaks.highest],
        phases=(*peaks.phases.values(), *([] if fast else [_answering(work, target)])),
        answers_at_once=log.answers_at_once,
        worst_row=row.where,
        tokens={
            "text": row.num_text_tokens,
            "image": row.num_image_tokens,
            "total": row.num_text_tokens + row.num_image_tokens,
        },
        flops_per_row=peaks.flops_per_row,
        fast=fast,
        seconds=round(time.perf_counter() - started, 1),
        versions=library_versions(),
        main_memory=_main_memory(work, log.weights, peaks),
        **_moved_bytes(plan, peaks.streamed_bytes_per_batch * passes_per_step(plan, work.batches)),
        encoding_reserved_bytes=_encoding_bytes(work, target),
        communication_bytes=communication,
        summed_bytes_per_step=log.weights.trained_bytes * (plan.num_gpus > 1),
        recorded_launches=max(sum(batch.recorded.values()) for batch in log.batches),
        batches=batches,
        update=update,
    )


def _moved_bytes(plan: RunPlan, of_layers: int) -> dict[str, int]:
    """Return what comes to the card in a step, of layers that are not all there, by where it comes from."""
    if plan.sharded:
        return {"gathered_bytes_per_step": of_layers * (plan.num_gpus - 1) // plan.num_gpus}
    return {"streamed_bytes_per_step": of_layers}


def _simulated(work: Work, target: Target) -> "Log":
    """Return what the steps and an evaluation allocate."""
    from vlmtune.estimate.simulate.simulation import Run, simulate

    answered = work.held_out and work.held_out.record
    hidden, evaluated = _hidden_of(target.card), work.evaluated_batches
    return simulate(work.plan, Run(work.steps, hidden, "as planned", evaluated, work.form, answered, work.fast))


def _answering(work: Work, target: Target) -> Phase:
    from vlmtune.estimate.answers import answering

    return answering(work.plan, work.evaluated_batches[0], work.form, _hidden_of(target.card))


def _peaks(log: "Log", target: Target) -> "Peaks":
    from vlmtune.estimate.allocator.peaks import peaks_of

    return peaks_of(log, target.expandable_segments)


def _encoding_bytes(work: Work, target: Target) -> int:
    """Return what is reserved at most while images are encoded; 0 where that is not done."""
    return _peaks(work.encoding.log(_hidden_of(target.card)), target).reserved_bytes if work.encoding else 0


def _hidden_of(card: Card) -> "Hidden":
    """Return what this card's operations take besides their outputs, as measured on it if it was."""
    from vlmtune.estimate.simulate.cuda import hidden_of

    measured = (card.cublas_forward_bytes, card.cublas_backward_bytes)
    return hidden_of(card.sm, card.num_sms, None if None in measured else measured)


def _breakdown(peaks: "Peaks", card: Card, communication: int, plan: RunPlan) -> tuple[Share, ...]:
    """Return what was allocated at the peak by kind, largest first, then what lies between and around it."""
    kinds = sorted(peaks.held[peaks.highest].items(), key=lambda item: -item[1])
    large = [Share(name, num_bytes) for name, num_bytes in kinds if num_bytes >= SMALLEST_SHARE_BYTES]
    named = sum(share.bytes for share in large)
    other = peaks.phases[peaks.highest].peak_allocated_bytes - named
    why = "graphs' own pool" if plan.cuda_graphs else "fragmentation"
    free = Share(f"reserved but free ({why})", peaks.reserved_bytes - named - other)
    shares = (*large, Share("other", other), free, Share("CUDA context", card.context_bytes))
    return (*shares, Share("NCCL", communication)) if communication else shares


def _main_memory(work: Work, weights: Weights, peaks: "Peaks") -> MainMemoryNeed:
    step_bytes = peaks.allocated_bytes - peaks.phases["load"].allocated_at_end_bytes
    return need_of(work.plan, weights, stored_format(work.source.config), work.batches, step_bytes)
