"""`vlmtune models show`: everything that is stored of one model of the catalogue."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmtune.cli.models.list import GB, GIB, card_and_budget, checked_with
from vlmtune.cli.options import JsonOption
from vlmtune.errors import VlmtuneError

if TYPE_CHECKING:
    from rich.table import Table

    from vlmtune.catalog import Entry
    from vlmtune.catalog.stored import Peak, Stored

EXAMPLE = "Example: [bold]vlmtune models show Qwen/Qwen3-VL-4B-Instruct[/bold]"
CONFIDENCE = {
    "hub": "config.json is the hub's own: its hash was compared",
    "copy": "config.json is a public copy, without a hash to compare",
    "built": "config.json was put together from a sibling's file and published sizes",
}


def show_model(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An id of `vlmtune models list`.")],
    as_json: JsonOption = False,
) -> None:
    """Show one model of the catalogue: its parts, licence, image tokens, and what each preset takes."""
    from vlmtune.catalog import find_entry, nearest_ids
    from vlmtune.catalog.stored import stored
    from vlmtune.cli.show import render

    entry = find_entry(model)
    if entry is None:
        near = nearest_ids(model)
        did_you_mean = f"did you mean {', '.join(near)}? " if near else ""
        raise VlmtuneError(
            f"{model[:100]} is not in the catalogue",
            f"{did_you_mean}`vlmtune models list` shows those that are; "
            f"`vlmtune models check {model[:100]}` tries any other",
        )
    known = stored(entry.model_id)
    if as_json:
        render.print_json(_everything(entry, known))
    else:
        _print_model(entry, known)


def _everything(entry: "Entry", known: "Stored") -> dict[str, Any]:
    facts = asdict(entry)
    facts["id"] = facts.pop("model_id")
    presets = {name: asdict(peak) | {"budget_bytes": budget, "fits": fits} for name, peak, budget, fits in _fits(known)}
    return facts | asdict(known) | {"peaks": presets}


def _fits(known: "Stored") -> "list[tuple[str, Peak, int, bool]]":
    """Return each preset with its peak, the budget of a card of its size, and whether it fits there."""
    found = []
    for name, peak in known.peaks.items():
        _, budget = card_and_budget(name)
        found.append((name, peak, budget, peak.most_bytes <= budget))
    return found


def _print_model(entry: "Entry", known: "Stored") -> None:
    from vlmtune.cli.show import render

    out = render.console()
    out.print(entry.model_id, style="bold", soft_wrap=True)
    facts = render.Table.grid(padding=(0, 2, 0, 0))
    facts.add_column()
    facts.add_column(overflow="fold")
    facts.add_row("family", f"{entry.family or 'none'} (model_type {entry.model_type})")
    facts.add_row("licence", f"{entry.licence} ({entry.licence_source})")
    facts.add_row("download", f"{entry.download_bytes / GB:.2f} GB ({entry.download_source})")
    facts.add_row("config", f"{CONFIDENCE[entry.confidence]} ({entry.source})")
    facts.add_row("checked", checked_with([known]).removeprefix("checked "))
    out.print(facts)
    out.print()
    out.print(_parts(entry))
    if known.problem:
        out.print()
        out.print(f"vlmtune cannot tune it: {known.problem}")
        return
    out.print()
    out.print(_image_tokens(known))
    out.print()
    out.print(_presets(known))
    out.print("on a card of the preset's size beside a Linux desktop, for the largest row the preset allows")
    for run in known.measured:
        size = f"{run.reserved_bytes / GIB:.2f} GiB reserved ({run.method}, rank {run.rank}, {run.tokens} tokens)"
        libraries = f"torch {run.versions['torch']}, transformers {run.versions['transformers']}"
        out.print(f"measured on {run.gpu}: {size}; random weights, {libraries}")
    out.print()
    out.print(f"Next: vlmtune {_next(entry, known)}", soft_wrap=True)


def _next(entry: "Entry", known: "Stored") -> str:
    """Return the command for the smallest card that the model fits; where none does, the one that searches."""
    from vlmtune.hardware.cards import sizes

    fitting = next((name for name, _, _, fits in _fits(known) if fits), sizes()[-1])
    return f"plan --model {entry.model_id} --gpu {fitting} -o my-run.yaml"


def _parts(entry: "Entry") -> "Table":
    from vlmtune.cli.show import render

    table = render.table("part", "parameters", "share", right=("parameters", "share"))
    for part, parameters in entry.parameters.items():
        if parameters:
            table.add_row(part, f"{parameters:,}", f"{parameters / entry.num_parameters:.1%}")
    table.add_section()
    table.add_row("all", f"{entry.num_parameters:,}", "100.0%")
    return table


def _image_tokens(known: "Stored") -> "Table":
    from vlmtune.cli.show import render

    sizes = [f"{side_px} px" for side_px in known.image_tokens]
    table = render.table("data.image_size", *sizes, right=tuple(sizes))
    table.add_row("image tokens", *(f"{tokens:,}" for tokens in known.image_tokens.values()))
    return table


def _presets(known: "Stored") -> "Table":
    from vlmtune.cli.show import render

    numbers = ("text", "image", "peak GiB", "of GiB")
    table = render.table("preset", "method", *numbers, "fits", right=numbers)
    for name, peak, budget, fits in _fits(known):
        tokens = (f"{peak.text_tokens}", f"{peak.image_tokens}")
        sizes = (f"{peak.most_bytes / GIB:.2f}", f"{budget / GIB:.2f}")
        table.add_row(name, peak.method, *tokens, *sizes, "yes" if fits else "no")
    return table
