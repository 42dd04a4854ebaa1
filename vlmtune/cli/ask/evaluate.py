"""`vlmtune evaluate`: evaluation loss and exact match on held-out rows, and the rows that went worst."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmtune.cli.options import BaseModelOption, CheckpointOption, JsonOption, RunArgument
from vlmtune.errors import VlmtuneError
from vlmtune.printing import say

if TYPE_CHECKING:
    from vlmtune.data.run_data import MeasuredRows
    from vlmtune.engine.evaluate import Evaluation
    from vlmtune.runs.folder import RunFolder

EXAMPLE = "Example: [bold]vlmtune evaluate runs/my-run --data heldout.jsonl[/bold]"
WORST_ROWS = 10


def evaluate(
    run: RunArgument,
    data: Annotated[Path | None, typer.Option("--data", help="Rows to ask. Default: data.val_path of the run.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Evaluate the model as it was before the run.")] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer in tokens. Default: that of the longest expected one.")
    ] = None,
    checkpoint: CheckpointOption = None,
    base_model: BaseModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the tuned model every held-out row; print evaluation loss, exact match and the worst rows."""
    from vlmtune.runs.folder import RunFolder

    if base and checkpoint:
        raise typer.BadParameter("--base asks the model before the run, which is no checkpoint", param_hint="--base")
    folder = RunFolder.open_existing(run)
    learned = None if base else folder.learned(checkpoint)
    rows = _rows(folder, data, live=not as_json)
    from vlmtune.workflow.start import start_on_gpu

    start_on_gpu()
    from vlmtune.data.features.prepare import Teller
    from vlmtune.engine.evaluate import evaluate_rows
    from vlmtune.engine.runtime import quiet_libraries
    from vlmtune.engine.tuned import load_tuned_for, load_untuned, plan_here, processor_of
    from vlmtune.models.processor import load_processor
    from vlmtune.workflow.fitting import fitting_samples
    from vlmtune.workflow.progress import progress as told
    from vlmtune.workflow.progress import standard_error

    quiet_libraries()
    teller = Teller(told(not as_json), lambda note: say(note, err=True))
    plan = plan_here(folder, base_model)
    if learned and learned.note:
        say(learned.note, err=True)
    samples = fitting_samples(rows, plan, processor_of(plan, learned) if learned else load_processor(plan))
    tuned = load_tuned_for(plan, learned, samples, teller) if learned else load_untuned(plan)
    from rich.progress import Progress

    console = standard_error(live=not as_json)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        losses, answers = (progress.add_task(name, total=len(samples)) for name in ("evaluation loss", "answers"))
        result = evaluate_rows(
            tuned, samples, max_new_tokens, partial(progress.advance, losses), partial(progress.advance, answers)
        )
    _print(result, as_json, is_longest=max_new_tokens is None)


def _rows(folder: "RunFolder", data: Path | None, live: bool) -> "MeasuredRows":
    from vlmtune.config.load import load_config
    from vlmtune.data.run_data import MeasuredRows
    from vlmtune.data.samples import require_good
    from vlmtune.workflow.rows import missing_file, read_rows, read_training

    loaded = load_config(folder.config)
    val_path, val_fraction = loaded.config.data.val_path, loaded.config.data.val_fraction
    if data is None and val_path is None and val_fraction is None:
        raise VlmtuneError(f"{folder.path} was trained without data.val_path", "say what to evaluate: --data FILE")
    held_out = loaded.config.data.train_path if val_path is None else val_path
    if data is None and (path := missing_file(loaded, held_out)):
        raise VlmtuneError(
            f"the rows that {folder.path} was evaluated on are not there: {path}",
            "the run folder or the rows were moved: say where they are now, --data FILE",
        )
    if data is None and val_path is None:
        rows = read_training(loaded, live=live).held_out
    else:
        rows = read_rows(loaded, str(data.absolute()) if data else val_path, live=live).rows
    on_bad_row = loaded.config.data.on_bad_row
    return MeasuredRows(require_good(rows, on_bad_row), on_bad_row)


def _print(result: "Evaluation", as_json: bool, *, is_longest: bool) -> None:
    from vlmtune.cli.show import render

    if as_json:
        render.print_json(result.as_dict())
        return
    exact = sum(answer.exact for answer in result.answers)
    out = render.console()
    out.print(f"rows             {len(result.answers)}")
    out.print(f"evaluation loss  {result.loss:.4f}")
    out.print(f"exact match      {result.exact_match:.1%} ({exact} of {len(result.answers)})")
    if result.num_cut:
        longest = "the longest expected answer has no more; " if is_longest else ""
        out.print(
            f"cut              {result.num_cut} of {len(result.answers)} answers at {result.max_new_tokens} tokens: "
            f"{longest}--max-new-tokens sets it",
            soft_wrap=True,
            highlight=False,
        )
    wrong = sorted((a for a in result.answers if not a.exact), key=lambda a: -a.loss)[:WORST_ROWS]
    if wrong:
        table = render.table("worst rows", "question", "expected", "answer", "loss", right=("loss",))
        for row in wrong:
            table.add_row(
                row.where, *(_short(text) for text in (row.question, row.expected, row.answer)), f"{row.loss:.2f}"
            )
        out.print()
        out.print(table)


def _short(text: str, max_chars: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= max_chars else line[: max_chars - 1] + "…"
