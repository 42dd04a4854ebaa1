"""`vlmtune models list`: the catalogue, from what is stored of it; nothing is simulated."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmtune.cli.options import JsonOption
from vlmtune.cli.targets import HERE
from vlmtune.units import GB, GIB, rate

if TYPE_CHECKING:
    from rich.table import Table

    from vlmtune.catalog import Entry
    from vlmtune.catalog.stored import Peak, Stored
    from vlmtune.hardware.cards import Card

EXAMPLE = "Example: [bold]vlmtune models list --gpu 12gb[/bold]"
LINE = 100
"""Columns of a terminal from which a model takes one line."""
WIDE = 120
"""From here on the line has all that is known."""
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")


@dataclass(frozen=True)
class Row:
    """A model at one preset on one card."""

    entry: "Entry"
    stored: "Stored"
    peak: "Peak | None"
    """None where vlmtune cannot tune the model, or not with this preset."""
    fits: bool | None

    def as_json(self) -> dict[str, Any]:
        """Return what the table shows, and the versions."""
        peak = self.peak
        return {
            "id": self.entry.model_id,
            "family": self.entry.family,
            "parameters": self.entry.num_parameters,
            "download_bytes": self.entry.download_bytes,
            "licence": self.entry.licence,
            "image_tokens": peak and peak.image_tokens,
            "peak_reserved_bytes": peak and peak.reserved_bytes,
            "load_bytes": peak and peak.load_bytes,
            "main_memory_bytes": peak and peak.main_memory_bytes,
            "rows_per_s": peak and peak.rows_per_s,
            "fits": self.fits,
            "problem": self.stored.problem,
            "checked": self.stored.checked,
            "versions": self.stored.versions,
        }


def list_models(
    gpu: Annotated[
        str | None,
        typer.Option(
            help="A card such as rtx-4060, a size such as 8gb, or `here`. Default: the preset's size, or 8gb.",
            show_default=False,
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="What to train with. Default: the preset of the card's size.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the catalogue: what each model takes at a preset, and whether that fits a card.

    Models that fit come first, the largest at the top; then the others, the nearest miss first. The peaks were
    estimated when vlmtune was made; `vlmtune estimate-vram` estimates anew.
    """
    from vlmtune.cli.show import render
    from vlmtune.config.presets import find, for_card
    from vlmtune.hardware.cards import standing_for

    name = find(preset).name if preset else None
    card, budget = card_and_budget(gpu or name)
    name = name or for_card(card.nominal_bytes)
    paced_on = standing_for(name).name
    rows = rows_for(name, budget)
    if as_json:
        head = {"gpu": card.key, "gpu_name": card.name, "preset": name, "budget_bytes": budget}
        head |= {"rows_per_s_on": paced_on}
        render.print_json(head | {"models": [row.as_json() for row in rows]})
        return
    out = render.console()
    out.print(_in_lines(rows, wide=out.width >= WIDE) if out.width >= LINE else _narrow(rows))
    out.print()
    fitting = sum(row.fits is True for row in rows)
    out.print(f"{fitting} of {len(rows)} models fit {card.name}: {budget / GIB:.2f} GiB, preset {name}.")
    out.print("tokens: of an image; GiB: the estimated peak; GB: the download; -: cannot be tuned so, or not known")
    out.print(f"r/s: rows a second, predicted for {paced_on}, if all rows are the largest that the preset allows")
    out.print(checked_with([row.stored for row in rows]))
    out.print("Next: vlmtune models show MODEL")


def rows_for(preset: str, budget: int) -> list[Row]:
    """Return every model: those that fit, the largest first; the nearest misses; those that cannot be tuned."""
    from vlmtune.catalog import catalog
    from vlmtune.catalog.stored import stored

    rows = []
    for entry in catalog():
        known = stored(entry.model_id)
        peak = known.peaks.get(preset)
        rows.append(Row(entry, known, peak, peak and peak.most_bytes <= budget))
    return sorted(rows, key=_place)


def _place(row: Row) -> tuple[int, int]:
    if row.peak is None:
        return 2, row.entry.num_parameters
    return (0, -row.entry.num_parameters) if row.fits else (1, row.peak.most_bytes)


def card_and_budget(gpu: str | None) -> "tuple[Card, int]":
    """Return the card and what can be reserved of it beside a Linux desktop; of the GPU here, at this moment."""
    if gpu == HERE:
        from vlmtune.cli.targets import choose_target

        target = choose_target(gpu, None, None, None).target
        return target.card, target.budget_bytes
    from vlmtune.cli.targets import DEFAULT_SIZE
    from vlmtune.hardware.cards import budget_bytes, find_card

    card = find_card(gpu or DEFAULT_SIZE)
    return card, budget_bytes(card, "linux")


def _narrow(rows: list[Row]) -> "Table":
    """Two lines a model: its id is never broken, so that it can be copied."""
    from rich.text import Text

    from vlmtune.cli.show import render

    table = render.table("model", *NUMBERS, "fits", right=NUMBERS)
    for row, is_last in _with_groups(rows):
        pace = f", {pace_in_words(row.peak)} rows/s" if row.peak and row.peak.rows_per_s else ""
        about = Text(f"\n  {row.entry.family or row.entry.model_type}, {row.entry.licence}{pace}", style="dim")
        table.add_row(Text(row.entry.model_id).append_text(about), *_numbers(row), end_section=is_last)
    return table


def _in_lines(rows: list[Row], *, wide: bool) -> "Table":
    """One line a model; its licence has room on wide terminals only."""
    from vlmtune.cli.show import render

    last = ("r/s", "fits", "checked") if wide else ("r/s", "fits")
    table = render.table("model", "family", *(("licence",) if wide else ()), *NUMBERS, *last, right=(*NUMBERS, "r/s"))
    for row, is_last in _with_groups(rows):
        entry, (*numbers, fits) = row.entry, _numbers(row)
        numbers = (*numbers, pace_in_words(row.peak), fits)
        cells = (entry.licence, *numbers, row.stored.checked) if wide else numbers
        table.add_row(entry.model_id, entry.family or entry.model_type, *cells, end_section=is_last)
    return table


NUMBERS = ("param.", "GB", "tokens", "GiB")


def _numbers(row: Row) -> tuple[str, ...]:
    entry, peak = row.entry, row.peak
    sizes = (billions(entry.num_parameters), f"{entry.download_bytes / GB:.1f}")
    if peak is None:
        return (*sizes, "-", "-", "-")
    return (*sizes, f"{peak.image_tokens}", f"{peak.most_bytes / GIB:.2f}", "yes" if row.fits else "no")


def pace_in_words(peak: "Peak | None") -> str:
    """Return the predicted rows a second."""
    if peak is None or peak.rows_per_s is None:
        return "-"
    return rate(peak.rows_per_s) if peak.rows_per_s >= 1 else f"{peak.rows_per_s:.2f}"


def _with_groups(rows: list[Row]) -> list[tuple[Row, bool]]:
    """Return each row with whether a line follows it: between those that fit and the others."""
    following = [*rows[1:], rows[-1]]
    return [(row, row.fits != after.fits) for row, after in zip(rows, following, strict=True)]


def billions(parameters: int) -> str:
    """Return a number of parameters as people say it: `7.06B`, `450M`."""
    return f"{parameters / GB:.2f}B" if parameters >= GB else f"{parameters / 1e6:.0f}M"


def checked_with(all_stored: "list[Stored]") -> str:
    """Say when the estimates were made and with what; of several days the first."""
    oldest = min(all_stored, key=lambda stored: stored.checked)
    libraries = ", ".join(f"{name} {oldest.versions[name]}" for name in LIBRARIES)
    return f"checked {oldest.checked} with {libraries}"
