"""`vlmtune validate`: what a run would use and where each value came from, and whether its data can be used."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmtune.cli.options import JsonOption, SetOption
from vlmtune.errors import VlmtuneError
from vlmtune.printing import say_json

if TYPE_CHECKING:
    from vlmtune.config.load import LoadedConfig
    from vlmtune.data.types import Rows
    from vlmtune.workflow.rows import ReadRows

EXAMPLE = "Example: [bold]vlmtune validate configs/8gb.yaml --set training.lora.rank=16[/bold]"


def validate(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="The YAML file of the run.", show_default=False)
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of configs instead.")] = False,
    preview: Annotated[
        int, typer.Option(min=0, metavar="N", help="Show N rows as the model will see them; loads its tokenizer.")
    ] = 0,
) -> None:
    """Check a config and its data without loading a model; show every value and where it came from."""
    if schema:
        from vlmtune.config.docs import schema_json

        say_json(schema_json().removesuffix("\n"))
        return
    if config is None:
        raise typer.BadParameter("give the config to check", param_hint="CONFIG")
    from vlmtune.config.load import load_config

    loaded = load_config(config, overrides or ())
    if not as_json:
        print_config(loaded)
    data, errors = _check_data(loaded, live=not as_json)
    if as_json:
        _print_json(loaded, data)
    else:
        _print_data(loaded, data)
    if errors:
        raise _as_one_error(errors)
    if preview:
        from vlmtune.cli.show.rows import print_preview

        print_preview(loaded, {key: read.rows for key, read in data.items()}, preview)


def print_config(loaded: "LoadedConfig") -> None:
    """Print every value of a config with its source, in the groups of the YAML."""
    from rich.text import Text

    from vlmtune.cli.show import render

    table = render.table("key", "value", "from")
    group: tuple[str, ...] = ()
    for name, value in loaded.values().items():
        *parents, leaf = name.split(".")
        for depth, parent in enumerate(parents):
            if group[: depth + 1] != tuple(parents[: depth + 1]):
                table.add_row(Text(f"{'  ' * depth}{parent}:", style="bold"))
                group = tuple(parents[: depth + 1])
        source = loaded.sources[name]
        style = "dim" if source == "default" else ""
        cells = ("  " * len(parents) + leaf, shown(value), source)
        table.add_row(*(Text(cell, style=style) for cell in cells))
    render.console().print(table)


def shown(value: object) -> str:
    """Return a value as people read it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(shown, value)) or "none"
    if isinstance(value, dict):
        told = ", ".join(f"{key}: {shown(one)}" for key, one in value.items() if one not in (None, {}))
        return f"{{{told}}}" if told else "none"
    return "-" if value is None else str(value)


def _check_data(loaded: "LoadedConfig", live: bool) -> tuple[dict[str, "ReadRows"], list[VlmtuneError]]:
    """The rows of each data file that could be read, pictures looked at, and what stands in the way of training."""
    from vlmtune.data.samples import require_good
    from vlmtune.metrics.suit import refuse_metrics
    from vlmtune.workflow.rows import ReadRows, read_training, with_commits

    loaded, _ = with_commits(loaded, {})
    data = loaded.config.data
    found, faults = {}, []
    for key in ("train_path", "val_path"):
        if getattr(data, key) is None:
            continue
        try:
            found[key] = read_training(loaded, live=live) if key == "train_path" else _held_out(loaded, live)
            samples = require_good(found[key].rows, data.on_bad_row)
            if key == "val_path":
                evaluation = loaded.config.evaluation
                refuse_metrics(evaluation.metrics, samples, in_training=evaluation.generate_rows > 0)
        except VlmtuneError as error:
            faults.append((f"data.{key}", error))
    if "train_path" in found and (held_out := found["train_path"].held_out):
        found["val_fraction"] = ReadRows(held_out, found["train_path"].files)
    return {key: _warned(key, found) for key in found}, _each_once(faults)


def _each_once(faults: list[tuple[str, VlmtuneError]]) -> list[VlmtuneError]:
    """Each fault with the keys that it was found by; one of a key that both are read with, or of one file, is one."""
    keys: dict[str, list[str]] = {}
    for key, error in faults:
        keys.setdefault(error.message, []).append(key)
    first = {error.message: error for _, error in reversed(faults)}
    return [
        VlmtuneError(
            message if message.startswith("data.") else f"{' and '.join(found)}: {message}",
            first[message].hint,
            problems=first[message].problems,
        )
        for message, found in keys.items()
    ]


def _held_out(loaded: "LoadedConfig", live: bool) -> "ReadRows":
    from vlmtune.workflow.rows import read_rows

    return read_rows(loaded, loaded.config.data.val_path, live=live)


def _warned(key: str, found: dict[str, "ReadRows"]) -> "ReadRows":
    """The rows of a key; those to evaluate on with a note where they are trained on too."""
    from dataclasses import replace

    from vlmtune.data.run_data import warning_of_shared_rows

    read, train = found[key], found.get("train_path")
    if key == "train_path" or train is None:
        return read
    files = read.files if key == "val_path" else None
    warning = warning_of_shared_rows(train.rows.samples, read.rows.samples, train.files, files)
    return replace(read, rows=replace(read.rows, notes=(*read.rows.notes, *([warning] if warning else []))))


def _print_data(loaded: "LoadedConfig", data: dict[str, "ReadRows"]) -> None:
    from vlmtune.cli.show import render

    table = render.table("data", "rows", "images", "bad rows", right=("rows", "images", "bad rows"))
    for key, read in data.items():
        table.add_row(f"data.{key}", *(f"{number:,}" for number in _counts(read.rows)))
    out = render.console()
    if data:
        out.print()
        out.print(table)
    for key, read in data.items():
        for note in _notes(loaded, read.rows):
            out.print(f"data.{key}: {note}", soft_wrap=True)
    if num_rows := _num_rows(data):
        for line in _length(loaded, num_rows)[1]:
            out.print(line, soft_wrap=True, highlight=False)


def _length(loaded: "LoadedConfig", num_rows: int) -> tuple[int, tuple[str, ...]]:
    """Optimizer steps of a run over so many rows, and what is told of them."""
    from vlmtune.plan.length import num_steps, open_values, told_of_length

    chosen = open_values(loaded.config, num_rows)
    training = loaded.with_values(chosen).config.training
    return num_steps(training, num_rows), told_of_length(training, num_rows, chosen)


def _notes(loaded: "LoadedConfig", rows: "Rows") -> tuple[str, ...]:
    """What people are told of a data file; more where the model is known, in training."""
    from vlmtune.data.boxes.check import told_without_model

    return (*rows.notes, *told_without_model(rows.samples, loaded.config.data.image_size))


def _num_rows(data: dict[str, "ReadRows"]) -> int:
    """Usable rows to train on in one epoch."""
    from vlmtune.data.sources.takes import rows_per_epoch

    read = data.get("train_path")
    return rows_per_epoch(read.rows.samples, read.files) if read else 0


def _counts(rows: "Rows") -> tuple[int, int, int]:
    """Usable rows, pictures in them, rows that cannot be used."""
    return len(rows.samples), rows.num_images, len({bad.where for bad in rows.bad_rows})


def _print_json(loaded: "LoadedConfig", data: dict[str, "ReadRows"]) -> None:
    from vlmtune.cli.show import render

    report = {}
    for key, rows in ((key, read.rows) for key, read in data.items()):
        num_rows, num_images, _ = _counts(rows)
        bad = [{"where": bad.where, "problem": bad.problem, "hint": bad.hint} for bad in rows.bad_rows]
        report[key] = {"rows": num_rows, "images": num_images, "bad_rows": bad, "notes": list(_notes(loaded, rows))}
    steps = _length(loaded, num_rows)[0] if (num_rows := _num_rows(data)) else None
    config = loaded.config.model_dump(mode="json")
    render.print_json({"config": config, "sources": loaded.sources, "data": report, "steps": steps})


def _as_one_error(errors: list[VlmtuneError]) -> VlmtuneError:
    if len(errors) == 1:
        return errors[0]
    problems = [part for error in errors for part in (VlmtuneError(error.message, error.hint), *error.problems)]
    return VlmtuneError("neither data file can be used", problems=tuple(problems))
