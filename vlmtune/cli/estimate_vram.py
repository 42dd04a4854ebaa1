"""`vlmtune estimate-vram`: the memory a run needs, before it runs, on a card that need not be there."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmtune.cli.options import JsonOption, SetOption
from vlmtune.cli.targets import ChosenCard, GpuOption, PlatformOption, ReserveOption, choose_target
from vlmtune.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from vlmtune.cli.show.memory import Estimated
    from vlmtune.config.load import LoadedConfig
    from vlmtune.config.values import Values
    from vlmtune.estimate.report import MemoryReport
    from vlmtune.estimate.scenario import Scenario
    from vlmtune.estimate.search.explain import Priced

EXAMPLE = "Example: [bold]vlmtune estimate-vram --model Qwen/Qwen3-VL-4B-Instruct --preset 8gb --gpu rtx-4060[/bold]"


def estimate_vram(
    configs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="CONFIG", help="The YAML file of the run; several with --compare.", show_default=False),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Without CONFIG: a model of the catalogue, or a folder.")] = None,
    preset: Annotated[str, typer.Option(help="Without CONFIG: the preset.")] = "8gb",
    gpu: GpuOption = None,
    platform: PlatformOption = None,
    reserve_gib: ReserveOption = None,
    explain: Annotated[bool, typer.Option("--explain", help="Also price every lever: GiB saved, work added.")] = False,
    fast: Annotated[bool, typer.Option("--fast", help="Simulate one step and repeat it: mostly within 1 %.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Put two or more CONFIGs side by side.")] = False,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a run will take on a card: total, parts, and the operation at the peak. No GPU, no weights needed.

    Exit codes: 0 fits, 3 does not fit, 4 cannot tell.
    """
    files = configs or []
    _check_words(files, model, explain, compare)

    def load(file: Path | None) -> "LoadedConfig":
        from vlmtune.config.load import load_config, preset_config

        return load_config(file, overrides or ()) if file else preset_config(model, preset, overrides or ())

    loaded = [load(file) for file in files or [None]]
    chosen = [choose_target(gpu, one.config.preset, platform, reserve_gib) for one in loaded]
    names = [str(file) for file in files] or [model]
    from vlmtune.workflow.scenario import open_scenario

    live = not as_json
    scenarios = [open_scenario(one, card.target, live=live) for one, card in zip(loaded, chosen, strict=True)]
    plans = [_estimated(*parts, fast, live) for parts in zip(names, scenarios, chosen, strict=True)]
    if compare:
        _show_side_by_side(plans, as_json)
    else:
        _show_one(plans[0], partial(_prices, plans[0], scenarios[0], live) if explain else None, as_json)
    raise typer.Exit(ExitCode.OK if all(plan.report.fits for plan in plans) else ExitCode.DOES_NOT_FIT)


def _check_words(files: list[Path], model: str | None, explain: bool, compare: bool) -> None:
    """Raise when the options do not go together."""
    if bool(files) == (model is not None):
        raise typer.BadParameter("give either CONFIG or --model", param_hint="CONFIG")
    if compare and len(files) < 2:
        raise typer.BadParameter("give two or more CONFIGs to compare", param_hint="--compare")
    if len(files) > 1 and not compare:
        raise typer.BadParameter("several CONFIGs need --compare", param_hint="CONFIG")
    if compare and explain:
        raise typer.BadParameter("the levers are those of one CONFIG", param_hint="--explain")


def _estimated(name: str, scenario: "Scenario", chosen: ChosenCard, fast: bool, live: bool) -> "Estimated":
    from vlmtune.cli.show.memory import Estimated
    from vlmtune.engine.runtime import collector_paused
    from vlmtune.levers.gpus.shard import ALWAYS, may_share
    from vlmtune.workflow.progress import standard_error

    with standard_error(live=live).status(f"simulating a training step of {name}…"), collector_paused():
        report = scenario.estimate(fast=fast)
        if not report.fits and may_share(scenario.config, scenario.plan.num_gpus):  # as `train` does
            scenario = scenario.with_values(ALWAYS)
            report = scenario.estimate(fast=fast)
        without_worst = scenario.without_worst()
    return Estimated(name, scenario.loaded.values(), report, chosen, without_worst)


def _prices(plan: "Estimated", scenario: "Scenario", live: bool) -> "list[Priced]":
    """Return what every change by a lever is worth, by estimates as fast as the plan's."""
    from vlmtune.config.values import words_of
    from vlmtune.estimate.search.explain import price_levers
    from vlmtune.workflow.progress import standard_error

    with standard_error(live=live).status("looking for levers…") as status:

        def estimate(values: "Values") -> "MemoryReport":
            status.update(f"simulating {' '.join(words_of(values))}…")
            return scenario.with_values(values).estimate(fast=plan.report.fast)

        return price_levers(scenario.config, plan.report, estimate, scenario.facts)


def _show_one(plan: "Estimated", price: "Callable[[], list[Priced]] | None", as_json: bool) -> None:
    """Show the answer at once; pricing the levers takes as long again for each of them."""
    from vlmtune.cli.show import memory as memory_view
    from vlmtune.cli.show import render

    if as_json:
        more = {"levers": [dataclasses.asdict(lever) for lever in price()]} if price else {}
        render.print_json(_as_json(plan) | more)
        return
    memory_view.print_one(plan)
    if price:
        memory_view.print_levers(price())


def _show_side_by_side(plans: "list[Estimated]", as_json: bool) -> None:
    from vlmtune.cli.show import memory as memory_view
    from vlmtune.cli.show import render

    if as_json:
        values = {"differences": memory_view.differences(plans), "plans": [_as_json(plan) for plan in plans]}
        render.print_json(values)
    else:
        memory_view.print_side_by_side(plans)


def _as_json(plan: "Estimated") -> dict[str, Any]:
    """Return the report, with the plan's name and what the user meant by the card."""
    from vlmtune.hardware.main_memory import read_main_memory

    chosen, here = plan.chosen, read_main_memory()
    without_worst = plan.without_worst and dataclasses.asdict(plan.without_worst)
    return dataclasses.asdict(plan.report) | {
        "without_worst": without_worst,
        "config": plan.name,
        "gpu_name": chosen.target.card.name,
        "gpu_from": chosen.card_from,
        "budget_from": chosen.budget_from,
        "main_memory_here": here and dataclasses.asdict(here),
    }
