"""`vlmtune guide`: what to know before tuning a model on a card, with every number computed for the two."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmtune.cli.options import JsonOption
from vlmtune.cli.targets import ChosenCard, GpuOption, choose_target
from vlmtune.errors import VlmtuneError
from vlmtune.printing import say

if TYPE_CHECKING:
    from vlmtune.guide.report import Guide

EXAMPLE = "Example: [bold]vlmtune guide --model llava-hf/llava-1.5-7b-hf --gpu 8gb --md guide.md[/bold]"


def guide(
    model: Annotated[
        str | None,
        typer.Option(
            help="A model of the catalogue, a hub id, or a folder. Default: the one that suits the card's preset.",
            show_default=False,
        ),
    ] = None,
    gpu: GpuOption = None,
    markdown: Annotated[
        Path | None, typer.Option("--md", metavar="FILE", help="Write the guide as Markdown instead of showing it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Explain tuning a model on a card: LoRA and QLoRA, every knob, the way out of memory errors, wrong advice.

    About 40 training steps are simulated, a few minutes the first time; they are kept.
    """
    from vlmtune.config.presets import find, for_card

    chosen = choose_target(gpu, None, None, None)
    preset = for_card(chosen.target.card.nominal_bytes)
    made = _make(model or find(preset).model, preset, chosen, live=not as_json)
    if as_json:
        from vlmtune.cli.show import render

        render.print_json(dataclasses.asdict(made))
        return
    from vlmtune.guide.text import guide_markdown

    text = guide_markdown(made, chosen.budget_from)
    if markdown:
        _write(text, markdown)
    else:
        from vlmtune.cli.show import render
        from vlmtune.cli.show.markdown import FoldedMarkdown

        render.console().print(FoldedMarkdown(text))


def _make(model: str, preset: str, chosen: ChosenCard, live: bool) -> "Guide":
    from vlmtune.engine.runtime import quiet_libraries
    from vlmtune.guide.numbers import make_guide
    from vlmtune.workflow.progress import standard_error

    quiet_libraries()
    number = 0
    with standard_error(live=live).status("simulating training steps…") as status:

        def say(what: str) -> None:
            nonlocal number
            number += 1
            status.update(f"simulating training step {number}: {what}")

        return make_guide(model, preset, chosen.target, say)


def _write(text: str, file: Path) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise VlmtuneError(f"{file} cannot be written: {error.strerror}", "check the folder") from None
    say(f"wrote {file}")
