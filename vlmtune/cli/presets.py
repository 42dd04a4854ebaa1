"""`vlmtune presets`: list, show and copy the presets."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from vlmtune.cli.options import JsonOption
from vlmtune.errors import VlmtuneError
from vlmtune.printing import say

app = typer.Typer(
    help="Settings that suit a card: list them, read one, start a config from one.",
    no_args_is_help=True,
    epilog="Example: [bold]vlmtune presets copy 8gb my-run.yaml[/bold]",
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A name of `vlmtune presets list`.")]
NUMBERS = ("rank", "batch\nsize", "max\ntext", "image\nsize", "rows\n/s")
HEADERS = ("preset", "card", "method", *NUMBERS, "suits")


@app.command("list", epilog="Example: [bold]vlmtune presets list[/bold]")
def list_presets(as_json: JsonOption = False) -> None:
    """List the presets, smallest card first."""
    from vlmtune.cli.show import render
    from vlmtune.config.presets import ALIASES, find, names
    from vlmtune.hardware.cards import standing_for

    found = [find(name) for name in names()]
    if as_json:
        render.print_json([_facts(preset) for preset in found])
        return
    table = render.table(*HEADERS, right=NUMBERS)
    for facts in map(_facts, found):
        pace = "-" if facts["rows_per_s"] is None else f"{facts['rows_per_s']:.2f}"
        numbers = (*(str(facts[name]) for name in ("rank", "batch_size", "max_length", "image_size")), pace)
        card = facts["card"].split(" (")[0]
        table.add_row(facts["preset"], card, facts["method"], *numbers, facts["suits"])
    out = render.console()
    out.print(table)
    out.print()
    out.print("batch size: rows at a time; max text: max_length, in tokens; image size: px")
    cards = ", ".join(
        standing_for(preset.name).name.removeprefix("NVIDIA ").removeprefix("GeForce ") for preset in found
    )
    out.print(f"rows/s: predicted for that model, all rows the largest, on a card of each size: {cards}")
    out.print("Rows per step (4 to 32) and epochs follow the number of rows, unless the config says them.")
    for alias, name in ALIASES.items():
        out.print(f"{alias} is another name of {name}.")
    out.print("Next: vlmtune presets copy NAME my-run.yaml")


@app.command("show", epilog="Example: [bold]vlmtune presets show 8gb[/bold]")
def show_preset(name: NameArgument, as_json: JsonOption = False) -> None:
    """Print a preset's file with its comments."""
    from vlmtune.config.presets import find

    preset = find(name)
    if as_json:
        from vlmtune.cli.show import render

        render.print_json({"preset": preset.name, "card": preset.card, "suits": preset.model, "values": preset.values})
    elif sys.stdout.isatty():
        from rich.syntax import Syntax

        from vlmtune.cli.show import render

        render.console().print(Syntax(preset.text, "yaml", theme="ansi_dark", word_wrap=True))
    else:
        say(preset.text.removesuffix("\n"))


@app.command("copy", epilog="Example: [bold]vlmtune presets copy 8gb my-run.yaml[/bold]")
def copy_preset(
    name: NameArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The config to write.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
) -> None:
    """Write a complete config with a preset's values, to fill in with your data."""
    from vlmtune.config.presets import starting_config
    from vlmtune.config.text import run_name_of

    text = starting_config(name, run_name_of(file))
    try:
        with file.open("w" if force else "x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        raise VlmtuneError(f"{file} exists already", "give another name, or overwrite it with --force") from None
    except OSError as error:
        raise VlmtuneError(f"{file} cannot be written: {error.strerror}", "check the folder") from None
    say(f"wrote {file}: change the lines marked <--, then run: vlmtune validate {file}")


def _facts(preset) -> dict[str, object]:
    from vlmtune.catalog.stored import stored
    from vlmtune.hardware.cards import standing_for

    training, data = preset.values["training"], preset.values["data"]
    return {
        "preset": preset.name,
        "card": preset.card,
        "method": training["method"],
        "rank": training["lora"]["rank"],
        "batch_size": training["batch_size"],
        "max_length": data["max_length"],
        "image_size": data["image_size"],
        "suits": preset.model,
        "rows_per_s": stored(preset.model).peaks[preset.name].rows_per_s,
        "rows_per_s_on": standing_for(preset.name).name,
    }
