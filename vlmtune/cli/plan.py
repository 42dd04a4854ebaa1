"""`vlmtune plan`: the config that fits a card, what it changes of a preset and why, as a file to train with."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmtune.cli.options import JsonOption
from vlmtune.cli.targets import GpuOption, PlatformOption, ReserveOption, choose_target
from vlmtune.errors import ExitCode, VlmtuneError
from vlmtune.printing import say
from vlmtune.units import GIB, rate

if TYPE_CHECKING:
    from vlmtune.cli.targets import ChosenCard
    from vlmtune.config.load import LoadedConfig
    from vlmtune.estimate.search.fit import Fit
    from vlmtune.estimate.search.several import OnGpus
    from vlmtune.hardware.cards import Target

EXAMPLE = "Example: [bold]vlmtune plan --model Qwen/Qwen3-VL-8B-Instruct --gpu 8gb -o my-run.yaml[/bold]"
MODELS_SHOWN = 3


def plan(
    model: Annotated[str, typer.Option(help="A model of the catalogue, a hub id, or a folder.")],
    gpu: GpuOption = None,
    data: Annotated[
        Path | None, typer.Option(help="Training rows: what fits is searched for the longest of them.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="What to start from. Default: the preset of the card's size.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE", help="Write the config.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
    platform: PlatformOption = None,
    reserve_gib: ReserveOption = None,
    gpus: Annotated[
        int, typer.Option(min=1, max=4096, help="Cards like this one that train together; says whether one does.")
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """Find the best config that fits a card: as little as possible is given up, memory that is left buys speed.

    Exit codes: 0 found, 3 nothing fits, 4 cannot tell.
    """
    if out and out.exists() and not force:
        raise VlmtuneError(f"{out} exists already", "give another name, or overwrite it with --force")
    from vlmtune.config.presets import for_card

    chosen = choose_target(gpu, preset, platform, reserve_gib)
    start = _start(model, preset or for_card(chosen.target.card.nominal_bytes), data, gpus)
    fit, several = _search(start, chosen.target, gpus, live=not as_json)
    if as_json:
        _print_json(fit, start, several)
    else:
        for one in several:
            say(f"preset {start.config.preset} on {one.in_words}")
    if fit.fits and not as_json:
        _print(fit, start, chosen)
    if not fit.fits:
        if as_json:
            raise typer.Exit(ExitCode.DOES_NOT_FIT)
        raise _nothing_fits(fit, start, chosen.target)
    if out:
        _write(fit, start, chosen.target.card.name, out, force)
        if not as_json:
            say(_next_step(out, data))


def _start(model: str, preset: str, data: Path | None, gpus: int) -> "LoadedConfig":
    from vlmtune.config.load import NO_DATA, preset_config

    words = [f"hardware.num_gpus={gpus}"] if gpus > 1 else []
    return preset_config(model, preset, words, train_path=str(data) if data else NO_DATA)


def _search(start: "LoadedConfig", target: "Target", gpus: int, live: bool) -> "tuple[Fit, list[OnGpus]]":
    """Return the config that fits, and of several cards whether one would do and whether they must share layers."""
    from vlmtune.config.load import NO_DATA
    from vlmtune.engine.runtime import collector_paused
    from vlmtune.estimate.search.fit import fit_card
    from vlmtune.estimate.search.several import on_gpus
    from vlmtune.workflow.progress import simulating
    from vlmtune.workflow.scenario import open_scenario

    needs_rows = start.config.data.train_path != NO_DATA
    scenario = open_scenario(start, target, live=live, needs_rows=needs_rows)
    with simulating("the preset", live=live) as tell, collector_paused():
        scenario = dataclasses.replace(scenario, tell=tell)
        return fit_card(scenario), on_gpus(scenario, gpus) if gpus > 1 else []


def _print(fit: "Fit", start: "LoadedConfig", chosen: "ChosenCard") -> None:
    import textwrap

    from vlmtune.cli.show import memory, render
    from vlmtune.estimate.search.plan_file import changed_lines

    out, report, tokens = render.console(), fit.report, fit.report.tokens
    preset = start.config.preset
    out.print(f"{report.model} on {chosen.target.card.name} ({chosen.card_from})", style="bold", soft_wrap=True)
    share = report.peak_reserved_bytes / report.budget_bytes
    out.print(
        f"fits: {report.peak_reserved_bytes / GIB:.2f} of {report.budget_bytes / GIB:.2f} GiB ({share:.0%})",
        soft_wrap=True,
    )
    total = f"{tokens['text']} text + {tokens['image']} image = {tokens['total']} tokens"
    out.print(f"longest row: {total} ({report.worst_row})", soft_wrap=True)
    as_it_is = f"preset {preset} as it is: {fit.unchanged.peak_reserved_bytes / GIB:.2f} GiB"
    before = fit.unchanged.time
    out.print(f"{as_it_is}, {rate(before.rows_per_s)} rows a second" if before else as_it_is, soft_wrap=True)
    for name, words in memory.time_in_words(report):
        out.print(f"{name}: {words}" if name else f"  {words}", soft_wrap=True)
    lines = changed_lines(fit, start)
    if not lines:
        out.print("it is kept: no memory is left that would buy speed", soft_wrap=True)
        return
    out.print()
    for line in lines:
        out.print(f"{line.key}: {line.value}", style="bold", soft_wrap=True)
        out.print(textwrap.fill(line.why, out.width, initial_indent="  ", subsequent_indent="  "), soft_wrap=True)
    out.print()
    out.print(f"everything else as in preset {preset}; {fit.tried} configs were simulated", soft_wrap=True)


def _print_json(fit: "Fit", start: "LoadedConfig", several: "list[OnGpus]") -> None:
    from vlmtune.cli.show import render

    report = dataclasses.asdict(fit.report)
    render.print_json(
        {
            "model": fit.report.model,
            "preset": start.config.preset,
            "gpu": fit.report.gpu,
            "fits": fit.fits,
            "words": fit.words,
            "changes": [
                {"words": change.words, "before": change.before, "reason": change.reason} for change in fit.changes
            ],
            "unchanged_peak_reserved_bytes": fit.unchanged.peak_reserved_bytes,
            "tried": fit.tried,
            "on_gpus": [dataclasses.asdict(one) for one in several],
            "report": report,
        }
    )


def _nothing_fits(fit: "Fit", start: "LoadedConfig", target: "Target") -> VlmtuneError:
    """Say by how much the nearest miss misses, which size of card would hold it, and which models may fit."""
    from vlmtune.estimate.search.fit import MARGIN
    from vlmtune.hardware.cards import budget_bytes, find_card, sizes

    needed, usable = fit.report.peak_reserved_bytes, target.budget_bytes * (1 - MARGIN)
    larger = (size for size in sizes() if budget_bytes(find_card(size), "linux") * (1 - MARGIN) >= needed)
    card = next(larger, None)
    hints = [f"a card of {card.removesuffix('gb')} GB would hold that" if card else "no known card would hold that"]
    if fitting := _models_that_fit(start.config.preset, usable):
        hints.append(f"models that fit: {', '.join(fitting)}")
    return VlmtuneError(
        f"nothing fits: {start.config.model.name} needs {needed / GIB:.2f} GiB with everything given up "
        f"({' '.join(fit.words) or 'nothing could be'}), and {usable / GIB:.2f} GiB of {target.card.name} can be used",
        "; ".join(hints),
        code=ExitCode.DOES_NOT_FIT,
    )


def _models_that_fit(preset: str, usable_bytes: float) -> list[str]:
    """Return the largest models of the catalogue that take no more with this preset as it is."""
    from vlmtune.catalog import catalog
    from vlmtune.catalog.stored import stored

    tunable = (entry for entry in catalog() if entry.family)
    fitting = [entry for entry in tunable if stored(entry.model_id).peaks[preset].most_bytes <= usable_bytes]
    fitting.sort(key=lambda entry: -entry.num_parameters)
    return [entry.model_id for entry in fitting[:MODELS_SHOWN]]


def _write(fit: "Fit", start: "LoadedConfig", card: str, out: Path, force: bool) -> None:
    from vlmtune.estimate.search.plan_file import plan_yaml

    text = plan_yaml(fit, start, card, out)
    try:
        with out.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise VlmtuneError(f"{out} exists already", "give another name, or overwrite it with --force") from None
    except OSError as error:
        raise VlmtuneError(f"{out} cannot be written: {error.strerror}", "check the folder") from None


def _next_step(out: Path, data: Path | None) -> str:
    if data:
        return f"wrote {out}; next: vlmtune train {out}"
    return f"wrote {out}: change the line marked <--, then run: vlmtune validate {out}"
