"""Held-out rows asked of a run, of its base, or of one beside the other."""

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vlmtune.errors import VlmtuneError
from vlmtune.files import relative_path
from vlmtune.printing import say
from vlmtune.runs.folder import Learned, RunFolder
from vlmtune.runs.records import Answered, EvaluatedRow, EvaluationRecord, Summary

if TYPE_CHECKING:
    from vlmtune.config.load import LoadedConfig
    from vlmtune.config.schema import EvaluationSection
    from vlmtune.data.run_data import MeasuredRows
    from vlmtune.data.types import Rows, Sample
    from vlmtune.engine.evaluate import Evaluation, Terms
    from vlmtune.plan.types import RunPlan

BASE = "base"
"""In place of a run: what it began with."""


@dataclass(frozen=True)
class Candidate:
    """A model that is asked: what a run has learned, or the model as it was before the run."""

    folder: RunFolder
    learned: Learned | None
    """None: the base."""

    @property
    def name(self) -> str:
        """`adapter`, `model`, `checkpoint-40` or `base`."""
        return self.learned.path.name if self.learned else BASE


@dataclass(frozen=True)
class Held:
    """The rows to ask, and how their run judges answers."""

    rows: "MeasuredRows"
    name: str
    """Of their file."""
    section: "EvaluationSection"


def held_rows(folder: RunFolder, data: Path | None, metrics: Sequence[str], live: bool) -> Held:
    """Return the rows of a file, or those that a run held out; `metrics`, where given, judge in place of its own.

    Raises:
        VlmtuneError: there are no rows, or a metric does not suit them, or cannot be taken here.
    """
    from vlmtune.config.load import load_config
    from vlmtune.data.run_data import MeasuredRows
    from vlmtune.data.samples import require_good
    from vlmtune.metrics.suit import refuse_unsuited
    from vlmtune.metrics.table import require_installed

    loaded = load_config(folder.config)
    section = replace_metrics(loaded.config.evaluation, metrics)
    require_installed(section.metrics)
    rows = _rows_of_file(loaded, data, live) if data else _held_out(folder, loaded, live)
    on_bad_row = loaded.config.data.on_bad_row
    samples = require_good(rows, on_bad_row)
    refuse_unsuited(section.metrics, samples)
    return Held(MeasuredRows(samples, on_bad_row), data.name if data else _name_of(loaded), section)


def _rows_of_file(loaded: "LoadedConfig", data: Path, live: bool) -> "Rows":
    from vlmtune.workflow.rows import read_rows

    return read_rows(loaded, str(data.absolute()), live=live).rows


def _held_out(folder: RunFolder, loaded: "LoadedConfig", live: bool) -> "Rows":
    """Return the rows that a run held out."""
    from vlmtune.workflow.rows import missing_file, read_rows, read_training

    data = loaded.config.data
    if data.val_path is None and data.val_fraction is None:
        raise VlmtuneError(f"{folder.path} was trained without data.val_path", "say what to evaluate: --data FILE")
    if path := missing_file(loaded, data.train_path if data.val_path is None else data.val_path):
        raise VlmtuneError(
            f"the rows that {folder.path} was evaluated on are not there: {path}",
            "the run folder or the rows were moved: say where they are now, --data FILE",
        )
    if data.val_path is None:
        return read_training(loaded, live=live).held_out
    return read_rows(loaded, data.val_path, live=live).rows


def _name_of(loaded: "LoadedConfig") -> str:
    """Return what the rows that a run held out are called: their file, or where they were taken from."""
    data = loaded.config.data
    if isinstance(data.val_path, str):
        return Path(data.val_path).name
    return "data.val_path" if data.val_path else "data.val_fraction"


def replace_metrics(section: "EvaluationSection", metrics: Sequence[str]) -> "EvaluationSection":
    """Return the section with other metrics, where some are given; each once."""
    return section.model_copy(update={"metrics": tuple(dict.fromkeys(metrics))}) if metrics else section


def evaluations(
    candidates: Sequence[Candidate], held: Held, terms: "Terms", base_model: str | None, live: bool
) -> "tuple[Sequence[Sample], list[Evaluation]]":
    """Ask each candidate every row that all of them take, and return these; one model is loaded at a time."""
    from vlmtune.data.run_data import MeasuredRows
    from vlmtune.engine.runtime import quiet_libraries
    from vlmtune.engine.tuned import plan_here

    quiet_libraries()
    plans = [plan_here(one.folder, base_model) for one in candidates]
    rows = held.rows
    for candidate, plan in zip(candidates, plans, strict=True):
        if candidate.learned and candidate.learned.note:
            say(candidate.learned.note, err=True)
        rows = MeasuredRows(_fitting(candidate, plan, rows), held.rows.on_bad_row)
    found = []
    for candidate, plan in zip(candidates, plans, strict=True):
        found.append(_evaluation(candidate, plan, rows.samples, terms, live))
        _release()
    return rows.samples, found


def _fitting(candidate: Candidate, plan: "RunPlan", rows: "MeasuredRows") -> "Sequence[Sample]":
    from vlmtune.engine.tuned import processor_of
    from vlmtune.models.processor import load_processor
    from vlmtune.workflow.fitting import fitting_samples

    return fitting_samples(
        rows, plan, processor_of(plan, candidate.learned) if candidate.learned else load_processor(plan)
    )


def _evaluation(
    candidate: Candidate, plan: "RunPlan", samples: "Sequence[Sample]", terms: "Terms", live: bool
) -> "Evaluation":
    from rich.progress import Progress

    from vlmtune.data.features.prepare import Teller
    from vlmtune.engine.evaluate import evaluate_rows
    from vlmtune.engine.tuned import load_tuned_for, load_untuned
    from vlmtune.workflow.progress import progress, standard_error

    learned, console = candidate.learned, standard_error(live=live)
    tell_of_one_by_one(plan, len(samples), terms.rows_at_once)
    teller = Teller(progress(live), lambda note: say(note, err=True))
    tuned = load_tuned_for(plan, learned, samples, teller) if learned else load_untuned(plan)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as shown:
        losses, answers = (shown.add_task(name, total=len(samples)) for name in ("evaluation loss", "answers"))
        return evaluate_rows(tuned, samples, terms, partial(shown.advance, losses), partial(shown.advance, answers))


def tell_of_one_by_one(plan: "RunPlan", num_rows: int, rows_at_once: int | None) -> None:
    """Say where rows are answered one by one, though there are several, and why."""
    from vlmtune.models.build import family_of

    if (why := family_of(plan).answers_alone) and num_rows > 1 and rows_at_once != 1:
        say(f"rows are answered one by one: {why}", err=True)


def _release() -> None:
    """Give the memory of a model back that nobody holds any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def record_of(
    candidate: Candidate, found: "Evaluation", held: Held, before: "tuple[Candidate, Evaluation] | None" = None
) -> EvaluationRecord:
    """Return what is kept of an evaluation, beside that of another model on the same rows where there is one."""
    folder = candidate.folder.path
    other = before[1].answers if before else [None] * len(found.answers)
    rows = [
        replace(row, images=[_shared_name(name, folder) for name in row.images], before=one and _answered(one))
        for row, one in zip(found.answers, other, strict=True)
    ]
    return EvaluationRecord(
        **asdict(_summary(candidate.name, found)),
        data=held.name,
        max_new_tokens=found.max_new_tokens,
        before=before and _summary(_name_beside(before[0], candidate), before[1]),
        rows=rows,
    )


def _name_beside(other: Candidate, candidate: Candidate) -> str:
    if other.folder == candidate.folder:
        return other.name
    return f"{other.folder.path.resolve().name}/{other.name}"


def _summary(name: str, found: "Evaluation") -> Summary:
    return Summary(asked=name, loss=found.loss, metrics=found.metrics, num_cut=found.num_cut)


def _answered(row: EvaluatedRow) -> Answered:
    return Answered(answer=row.answer, loss=row.loss, cut=row.cut, scores=row.scores)


def _shared_name(name: str, folder: Path) -> str:
    """Return a picture's name for the run folder, which can be shared: a path as seen from it."""
    path = Path(name)
    return relative_path(path, folder) if path.is_absolute() else name


def changed_rows(record: EvaluationRecord) -> tuple[list[EvaluatedRow], list[EvaluatedRow]]:
    """Return the rows that the first metric calls better than before, and those it calls worse; the most changed first.

    The record must have what was before.
    """
    from vlmtune.metrics.table import METRICS

    name = next(iter(record.metrics))
    sign = -1 if METRICS[name].is_error else 1

    def gain(row: EvaluatedRow) -> float:
        return sign * (row.scores[name] - row.before.scores[name])

    better, worse = ([row for row in record.rows if way * gain(row) > 0] for way in (1, -1))
    return sorted(better, key=gain, reverse=True), sorted(worse, key=gain)
