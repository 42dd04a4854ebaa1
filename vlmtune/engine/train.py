"""A plan and its rows → a trained adapter, a log and a report."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from transformers import PrinterCallback, ProcessorMixin

from vlmtune.data.batches.packs import tell_of_long_rows
from vlmtune.data.collate import Collator
from vlmtune.data.dataset import TuneDataset
from vlmtune.data.features.prepare import Share, Teller, features_of
from vlmtune.data.features.rows import RowFeatures
from vlmtune.data.measure.lengths import Lengths, refuse_too_long, refuse_without_answer
from vlmtune.data.run_data import MeasuredRows, RunData
from vlmtune.data.workers import READERS, workers_for_training
from vlmtune.engine.answers.held_out import HeldOutAnswers
from vlmtune.engine.callbacks import FirstStepCheck, MovedCheck, Recorder, StopOnInterrupt
from vlmtune.engine.checkpoints import WRITE_ERRORS, disk_full, drop_incomplete, newest_whole
from vlmtune.engine.memory import MemoryWatch, facts_of_gpu
from vlmtune.engine.monitor import LiveView
from vlmtune.engine.oom import out_of_memory
from vlmtune.engine.ranks import group
from vlmtune.engine.ranks.alike import SameNumbers, refuse_unseen
from vlmtune.engine.ranks.follow import FollowFirst, SaveByMinutes
from vlmtune.engine.ranks.report import facts_of_all
from vlmtune.engine.results.best import callbacks_of, take_best
from vlmtune.engine.results.card import write_card
from vlmtune.engine.results.save import partial_of, result_of, save_tuned
from vlmtune.engine.trainer import TuneTrainer
from vlmtune.errors import VlmtuneError
from vlmtune.files import is_disk_full, remove
from vlmtune.hub.source import ModelSource
from vlmtune.models.build import base_of, build_model, check_checkpoint, family_of
from vlmtune.models.features import serve_features
from vlmtune.models.inventory import InventoryRow, inventory
from vlmtune.models.layers.peers import Peers
from vlmtune.models.layers.placed import shared_with
from vlmtune.models.processor import load_processor, template_notes
from vlmtune.plan.types import RunPlan
from vlmtune.runs.folder import RunFolder
from vlmtune.runs.histogram import histogram_of_lengths
from vlmtune.runs.pages.report import write_report
from vlmtune.runs.records import Best, LongestRow, TrainReport
from vlmtune.runs.versions import library_versions


def train(
    plan: RunPlan, source: ModelSource, data: RunData, folder: RunFolder, view: LiveView, *, resume: bool = False
) -> TrainReport:
    """Train and return the report; adapter, log and report are in `folder` afterwards.

    Raises:
        VlmtuneError: what the user can change: rows too long, a file of the model missing, memory or disk full.
    """
    try:
        with READERS.ended():
            return _train(plan, source, data, folder, view, resume)
    except torch.OutOfMemoryError as error:
        raise out_of_memory(error, "outside of forward and backward") from None
    except WRITE_ERRORS as error:
        if not is_disk_full(error):
            raise
        remove(partial_of(plan, folder))
        raise disk_full(folder, f"a file of {folder.path}") from None


def _train(
    plan: RunPlan, source: ModelSource, data: RunData, folder: RunFolder, view: LiveView, resume: bool
) -> TrainReport:
    family = family_of(plan)
    refuse_unseen(folder)
    check_checkpoint(plan)
    processor = load_processor(plan)
    for note in template_notes(processor, plan):
        view.note(note)

    def measured(rows: MeasuredRows) -> Lengths:
        return rows.lengths(processor, family, plan, source, view.doing)

    val_lengths, lengths = measured(data.val), measured(data.train)
    for checked in (val_lengths, lengths):
        refuse_too_long(checked, plan)
        refuse_without_answer(checked, processor, family, plan)
    tell_of_long_rows(lengths.total, plan, view.note)
    _refuse_blind_tower(lengths, plan)
    _check_longest(TuneDataset(data.train.samples, processor, family, plan), lengths, plan)
    val_features, features = _features(plan, source, (data.val, data.train), processor, view)
    rows = TuneDataset(data.train.samples, processor, family, plan, features)
    rows.takes = data.takes(plan)
    val_rows = TuneDataset(data.val.samples, processor, family, plan, val_features)
    plan = replace(plan, num_workers=workers_for_training(plan, rows[lengths.most_pixels()].tensors, view.note))
    checkpoint = group.told_by_first(_checkpoint(folder, resume, view) if group.is_first() else None)
    with group.first_alone(plan.cache_quantized and not plan.sharded), shared_with(_peers(plan)):
        model = build_model(plan, tell=view.note)
    if features and features.form:
        serve_features(base_of(model), features.form)
    if plan.device == "cuda":
        torch.cuda.empty_cache()  # loading passes every weight through 16 bits; those blocks would only lie about
    run_rows = RunRows(rows, val_rows, lengths.total.tolist(), Collator(processor))
    running = build_running(plan, model, folder, view, run_rows)
    trainer, recorder, interrupt, watch = running.trainer, running.recorder, running.interrupt, running.watch
    best = None
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        interrupt.restore()
    if not interrupt.stopped:
        if val_rows and not _evaluated_last(recorder, trainer):
            trainer.evaluate()
        best = take_best(trainer, plan, folder, view)
        if group.is_first():
            save_tuned(trainer.model, processor, plan, folder)
    report = TrainReport(
        status="interrupted" if interrupt.stopped else "finished",
        steps=trainer.state.global_step,
        **_facts_of_plan(plan),
        **_facts_of_data(data, lengths, plan),
        **_facts_of_model(inventory(model, family)),
        **_facts_of_training(recorder, best),
        **facts_of_gpu(watch),
        **facts_of_all(trainer.model),
        notes=_notes(data, plan, watch),
    )
    if group.is_first():
        _write_down(report, recorder, plan, folder)
    return report


def _peers(plan: RunPlan) -> Peers | None:
    return group.peers() if plan.sharded else None


def _write_down(report: TrainReport, recorder: Recorder, plan: RunPlan, folder: RunFolder) -> None:
    write_report(folder, report, recorder.records)
    if report.status == "finished":
        write_card(result_of(plan, folder), plan, asdict(report), whole=plan.method == "full")


def _features(
    plan: RunPlan, source: ModelSource, parts: Sequence[MeasuredRows], processor: ProcessorMixin, view: LiveView
) -> list[RowFeatures | None]:
    """Return the cached features of each part's rows; None where the model has its tower."""
    if not plan.cache_features:
        return [None for _ in parts]
    share = Share(*group.place_on_machine(), lambda: group.gathered(None))
    samples, teller = [part.samples for part in parts], Teller(view.doing, view.note)
    try:
        return [*features_of(plan, source, samples, processor, teller, share)]
    except torch.OutOfMemoryError as error:
        raise out_of_memory(error, "while images were encoded") from None


@dataclass(frozen=True)
class RunRows:
    """The rows of a run, encoded when they are asked for."""

    train: TuneDataset
    val: TuneDataset
    lengths: list[int]
    """Tokens of each row to train on."""
    collator: Collator


@dataclass(frozen=True)
class Running:
    """The trainer of a run and what watches it."""

    trainer: TuneTrainer
    recorder: Recorder
    interrupt: StopOnInterrupt
    watch: MemoryWatch | None
    """On a GPU."""


def build_running(plan: RunPlan, model: torch.nn.Module, folder: RunFolder, view: LiveView, rows: RunRows) -> Running:
    """Return the trainer as a run has it; the model is on its device and nothing else is."""
    estimated = folder.read_estimate()
    watch = MemoryWatch(view, estimated) if plan.device == "cuda" else None
    data = {"train_dataset": rows.train, "eval_dataset": rows.val}
    trainer = TuneTrainer(plan, model, folder, rows.lengths, rows.collator, view.between_steps, **data)
    if plan.generate_rows and len(rows.val):
        trainer.held_out = HeldOutAnswers(plan, rows.val, view.note, estimated and estimated.answers_at_once)
    interrupt, recorder = StopOnInterrupt(view, trainer), Recorder(folder, view, trainer)
    watches = [watch] if watch else []
    checks = (SameNumbers(model), FirstStepCheck(trainer, family_of(plan)), MovedCheck(trainer))
    by_minutes = [SaveByMinutes(plan.save_minutes)] if plan.save_minutes else []
    best, services = callbacks_of(plan, folder), _services(plan, folder)
    for callback in (interrupt, recorder, *checks, *best, *by_minutes, *watches, *services, FollowFirst(interrupt)):
        trainer.add_callback(callback)
    trainer.remove_callback(PrinterCallback)
    return Running(trainer, recorder, interrupt, watch)


def _checkpoint(folder: RunFolder, resume: bool, view: LiveView) -> str | None:
    """Return the checkpoint to go on from, with the log cut back to it."""
    drop_incomplete(folder)
    checkpoint = newest_whole(folder, view.note) if resume else None
    if resume:
        start = f"continuing from {checkpoint.name}" if checkpoint else "no checkpoint yet: starting from the beginning"
        view.note(start)
    folder.truncate_log(int(checkpoint.name.removeprefix("checkpoint-")) if checkpoint else 0)
    return str(checkpoint) if checkpoint else None


def _refuse_blind_tower(lengths: Lengths, plan: RunPlan) -> None:
    """Raise when vision tower or projector are to learn from rows without images."""
    trains_tower = family_of(plan).vision in (plan.lora_targets or "")
    if (trains_tower or {"vision", "projector"} & set(plan.trainable_parts)) and not lengths.image.any():
        raise VlmtuneError("vision tower and projector cannot learn: no row has an image", "keep them frozen")


def _check_longest(rows: TuneDataset, lengths: Lengths, plan: RunPlan) -> None:
    """Encode the longest row: the processor must make as many image tokens as were counted."""
    index = lengths.longest()
    row = rows[index]
    if row.num_image_tokens != lengths.image[index]:
        raise VlmtuneError(
            f"{row.where}: the processor of {plan.model_name} makes {row.num_image_tokens} image tokens, "
            f"{lengths.image[index]} were counted",
            "this is a mistake of vlmtune: please report the model and the size of that row's images; without them "
            "the other rows can be trained",
        )


def _evaluated_last(recorder: Recorder, trainer: TuneTrainer) -> bool:
    return any(r.step == trainer.state.global_step and r.eval_loss is not None for r in recorder.records)


def _services(plan: RunPlan, folder: RunFolder) -> list:
    if "tensorboard" not in plan.report_to or not group.is_first():
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(str(folder.tensorboard)))]


def _facts_of_plan(plan: RunPlan) -> dict:
    return {
        "experiment_name": plan.experiment_name,
        "model": plan.model_name,
        "method": plan.method,
        "precision": plan.autocast_dtype or plan.base_dtype,
        "versions": library_versions(),
    }


def _facts_of_data(data: RunData, lengths: Lengths, plan: RunPlan) -> dict:
    longest = lengths.longest()
    over = lengths.text[lengths.text > plan.max_length] - plan.max_length
    return {
        "num_rows": len(data.train.samples),
        "num_skipped_rows": len(data.skipped),
        "skipped": list(data.skipped),
        "num_cut_rows": len(over),
        "num_cut_tokens": int(over.sum()),
        "text_tokens": int(lengths.text.sum()),
        "image_tokens": int(lengths.image.sum()),
        "longest_row": LongestRow(lengths.where(longest), int(lengths.total[longest])),
        "row_lengths": histogram_of_lengths(lengths.total.tolist()),
    }


def _notes(data: RunData, plan: RunPlan, watch: MemoryWatch | None) -> list[str]:
    difference = watch.difference() if watch else None
    chosen = [f"{choice.key} = {choice.value}: {choice.reason}" for choice in plan.choices]
    return [*data.notes, *chosen, *([difference] if difference else [])]


def _facts_of_model(parts: list[InventoryRow]) -> dict:
    trainable = sum(row.parameters for row in parts if row.trainable)
    return {"trainable_parameters": trainable, "total_parameters": sum(row.parameters for row in parts)}


def _facts_of_training(recorder: Recorder, best: Best | None) -> dict:
    losses = [record.loss for record in recorder.records]
    evals = {record.step: record.eval_loss for record in recorder.records if record.eval_loss is not None}
    metrics = {record.step: record.eval_metrics for record in recorder.records if record.eval_metrics}
    evaluated = best.step if best else max(evals, default=None)
    work, seconds = recorder.totals, max(recorder.seconds, 1e-9)
    return {
        "train_loss_first": losses[0] if losses else None,
        "train_loss_last": losses[-1] if losses else None,
        "eval_loss": evals.get(evaluated),
        "eval_metrics": metrics.get(best.step if best else max(metrics, default=None)),
        "best": best,
        "trained_tokens": work.trained_tokens,
        "seconds": recorder.seconds,
        "samples_per_s": work.rows / seconds,
        "tokens_per_s": work.tokens / seconds,
        "data_wait_share": min(1.0, work.waited_s / seconds),
    }
