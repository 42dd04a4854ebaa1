"""`vlmtune evaluate`: loss and metrics on held-out rows, the rows that went worst, and what changed against another."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmtune.cli.ask.load import refuse_base_of_checkpoint
from vlmtune.cli.options import (
    BaseModelOption,
    BatchSizeOption,
    CheckpointOption,
    JsonOption,
    RunArgument,
    UntunedOption,
)
from vlmtune.printing import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from vlmtune.data.types import Sample
    from vlmtune.runs.records import EvaluatedRow, EvaluationRecord
    from vlmtune.workflow.asked.evaluation import Candidate

EXAMPLE = "Example: [bold]vlmtune evaluate runs/my-run --data heldout.jsonl --compare base[/bold]"
SHOWN_ROWS = 10


def evaluate(
    run: RunArgument,
    data: Annotated[Path | None, typer.Option("--data", help="Rows to ask. Default: data.val_path of the run.")] = None,
    base: UntunedOption = False,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="Ask this run too, or `base`: the model as it was before; show the rows that changed."
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="Judge answers by this metric. Repeatable. Default: evaluation.metrics of the run."),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer in tokens. Default: that of the longest expected one.")
    ] = None,
    batch_size: BatchSizeOption = None,
    checkpoint: CheckpointOption = None,
    base_model: BaseModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the tuned model every held-out row; print evaluation loss, metrics and the worst rows."""
    from vlmtune.engine.ranks.single import refuse_several_processes
    from vlmtune.runs.folder import RunFolder
    from vlmtune.workflow.asked.evaluation import Candidate, evaluations, held_rows, record_of

    refuse_several_processes()
    _refuse_contradictions(base, compare, checkpoint)
    _refuse_unknown(metric or ())
    folder = RunFolder.open_existing(run)
    asked = Candidate(folder, None if base else folder.learned(checkpoint))
    before = [_other(compare, asked)] if compare else []
    held = held_rows(folder, data, metric or (), live=not as_json)
    from vlmtune.workflow.start import start_on_gpu

    start_on_gpu()
    from vlmtune.engine.evaluate import Terms

    terms = Terms(held.section.metrics, max_new_tokens, batch_size or held.section.batch_size)
    samples, (*first, found) = evaluations([*before, asked], held, terms, base_model, live=not as_json)
    record = record_of(asked, found, held, (before[0], first[0]) if before else None)
    if as_json:
        _print_json(record)
    else:
        _print(record, is_longest=max_new_tokens is None)
    _keep(folder.base_evaluation if base else folder.evaluation, record, samples, tell=not as_json)


def _refuse_contradictions(base: bool, compare: str | None, checkpoint: str | None) -> None:
    refuse_base_of_checkpoint(base, checkpoint)
    if base and compare:
        raise typer.BadParameter("--base asks the base alone; --compare base asks both", param_hint="--base")


def _refuse_unknown(metrics: list[str]) -> None:
    from vlmtune.metrics.table import METRICS

    if unknown := [name for name in metrics if name not in METRICS]:
        raise typer.BadParameter(f"{unknown[0]} is none of {', '.join(METRICS)}", param_hint="--metric")


def _other(compare: str, asked: "Candidate") -> "Candidate":
    """Return what is compared with: what another run has left, or the base of this one."""
    from vlmtune.runs.folder import RunFolder
    from vlmtune.workflow.asked.evaluation import BASE, Candidate

    if compare == BASE:
        return Candidate(asked.folder, None)
    other = RunFolder.open_existing(Path(compare))
    learned = other.learned()
    if asked.learned and learned.path.resolve() == asked.learned.path.resolve():
        raise typer.BadParameter(
            "that is the run itself; name another one, or base: the model as it was before", param_hint="--compare"
        )
    return Candidate(other, learned)


def _keep(path: Path, record: "EvaluationRecord", samples: "Sequence[Sample]", *, tell: bool) -> None:
    from vlmtune.files import write_atomically
    from vlmtune.workflow.asked.gallery import write_gallery

    try:
        write_atomically(path, record.to_json())
        write_gallery(page := path.with_suffix(".html"), record, samples)
    except OSError as error:
        say(f"the evaluation cannot be written into {path.parent}: {error.strerror}", err=True)
        return
    if tell:
        say(f"\nevery row, with its pictures: {page}")


def _print_json(record: "EvaluationRecord") -> None:
    from vlmtune.files import strict_json
    from vlmtune.printing import say_json
    from vlmtune.workflow.asked.evaluation import changed_rows

    values = asdict(record)
    answers = values.pop("rows")
    exact = {"exact_match": record.metrics["exact"]} if "exact" in record.metrics else {}
    changed = dict(zip(("better", "worse"), _places(changed_rows(record)), strict=True)) if record.before else {}
    say_json(strict_json({"rows": len(answers), **values, **exact, **changed, "answers": answers}, indent=2))


def _places(parts: "tuple[list[EvaluatedRow], ...]") -> list[list[str]]:
    return [[row.where for row in part] for part in parts]


def _print(record: "EvaluationRecord", *, is_longest: bool) -> None:
    from vlmtune.cli.show import render
    from vlmtune.data.types import count

    out, number = render.console(), len(record.rows)
    out.print(f"rows             {number}")
    if record.before:
        out.print(_side_by_side(record))
    else:
        out.print(f"evaluation loss  {record.loss:.4f}")
        for name, share in record.metrics.items():
            out.print(f"{'exact match' if name == 'exact' else name:<16} {share:.1%}{_of_all(name, record)}")
    if record.num_cut:
        longest = "the longest expected answer has no more; " if is_longest else ""
        cut = f"{record.num_cut} of {count(number, 'answer')} at {count(record.max_new_tokens, 'token')}"
        out.print(
            f"cut              {cut}: {longest}--max-new-tokens sets it",
            soft_wrap=True,
            highlight=False,
        )
    for part in _changes(record) if record.before else _worst(record):
        out.print()
        out.print(part, highlight=False)


def _of_all(name: str, record: "EvaluationRecord") -> str:
    """Return how many rows are right, where each is right or wrong."""
    values = [row.scores[name] for row in record.rows]
    return f" ({sum(map(int, values))} of {len(values)})" if set(values) <= {0.0, 1.0} else ""


def _side_by_side(record: "EvaluationRecord") -> "Table":
    from vlmtune.cli.show import render

    before = record.before
    table = render.table("", before.asked, record.asked, "change", right=(before.asked, record.asked, "change"))
    losses = (before.loss, record.loss)
    table.add_row("evaluation loss", *(f"{loss:.4f}" for loss in losses), f"{losses[1] - losses[0]:+.4f}")
    for name, share in record.metrics.items():
        earlier = before.metrics[name]
        table.add_row(name, f"{earlier:.1%}", f"{share:.1%}", f"{100 * (share - earlier):+.1f} points")
    return table


def _changes(record: "EvaluationRecord") -> "list[Table | str]":
    """Return titles and tables of the rows that became better and worse by the first metric."""
    from vlmtune.cli.show import render
    from vlmtune.data.types import count
    from vlmtune.workflow.asked.evaluation import changed_rows

    tables, name = [], next(iter(record.metrics))
    for what, rows in zip(("better", "worse"), changed_rows(record), strict=True):
        title = f"{what} by {name}: {len(rows)} of {count(len(record.rows), 'row')}"
        title += f", the first {SHOWN_ROWS}" if len(rows) > SHOWN_ROWS else ""
        table = render.table("row", "question", "expected", record.before.asked, record.asked)
        for row in rows[:SHOWN_ROWS]:
            texts = (row.question, _all(row.expected), row.before.answer, row.answer)
            table.add_row(row.where, *map(_short, texts))
        tables += [title, table] if rows else [title]
    return tables


def _worst(record: "EvaluationRecord") -> "list[Table]":
    """Return the table of the rows that the first metric does not call perfect and the model found least likely."""
    from vlmtune.cli.show import render
    from vlmtune.metrics.table import METRICS

    name = next(iter(record.metrics))
    perfect = 0.0 if METRICS[name].is_error else 1.0
    wrong = sorted((row for row in record.rows if row.scores[name] != perfect), key=lambda row: -row.loss)
    table = render.table("worst rows", "question", "expected", "answer", "loss", right=("loss",))
    for row in wrong[:SHOWN_ROWS]:
        texts = (row.question, _all(row.expected), row.answer)
        table.add_row(row.where, *map(_short, texts), f"{row.loss:.2f}")
    return [table] if wrong else []


def _all(expected: list[str]) -> str:
    """Return the accepted answers in one text."""
    return " | ".join(expected)


def _short(text: str, max_chars: int = 60) -> str:
    line = " ".join(text.split()) or "(nothing)"
    return line if len(line) <= max_chars else line[: max_chars - 1] + "…"
