"""`vlmtune estimate-vram`: the memory a run needs, before it runs, on a card that need not be there."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vlmtune.cli.options import JsonOption, SetOption
from vlmtune.errors import ExitCode, VlmtuneError

if TYPE_CHECKING:
    from vlmtune.config.load import LoadedConfig
    from vlmtune.data.types import Sample
    from vlmtune.estimate.explain import Lever
    from vlmtune.estimate.run import MemoryReport, Target

EXAMPLE = "Example: [bold]vlmtune estimate-vram --model Qwen/Qwen3-VL-4B-Instruct --preset 8gb --gpu rtx-4060[/bold]"
GIB = 2**30


def estimate_vram(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="The YAML file of the run.", show_default=False)
    ] = None,
    model: Annotated[str | None, typer.Option(help="Without CONFIG: a model of the catalogue, or a folder.")] = None,
    preset: Annotated[str, typer.Option(help="Without CONFIG: the preset.")] = "8gb",
    gpu: Annotated[str | None, typer.Option(help="A card such as rtx-4060, or a size such as 8gb.")] = None,
    platform: Annotated[
        Literal["headless", "linux", "windows"], typer.Option(help="What else runs on the card.")
    ] = "linux",
    reserve_gib: Annotated[
        float | None, typer.Option(min=0, help="Left to the desktop. Default: by platform.", show_default=False)
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Also price every lever: GiB saved, work added.")] = False,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a run will take on a card: total, parts, and the operation at the peak. No GPU, no weights needed.

    Exit codes: 0 fits, 3 does not fit, 4 cannot tell.
    """
    words = overrides or []
    loaded = _load(config, model, preset, words)
    target = _target(gpu or loaded.config.preset or "8gb", platform, reserve_gib)
    report = _estimate(loaded, target)
    if not as_json:
        _print(report, target)
    levers = []
    if explain:
        from vlmtune.estimate.explain import price_levers

        levers = price_levers(
            loaded.config, report, lambda more: _estimate(_load(config, model, preset, [*words, *more]), target)
        )
        if not as_json:
            _print_levers(levers)
    if as_json:
        import dataclasses

        from vlmtune.cli import render

        more = {"levers": [dataclasses.asdict(lever) for lever in levers]} if explain else {}
        render.print_json(dataclasses.asdict(report) | more)
    raise typer.Exit(ExitCode.OK if report.fits else ExitCode.DOES_NOT_FIT)


def _load(config: Path | None, model: str | None, preset: str, overrides: list[str]) -> "LoadedConfig":
    from vlmtune.config.load import load_config, preset_config

    if (config is None) == (model is None):
        raise typer.BadParameter("give either CONFIG or --model", param_hint="CONFIG")
    return load_config(config, overrides) if config else preset_config(model, preset, overrides)


def _target(gpu: str, platform: Literal["headless", "linux", "windows"], reserve_gib: float | None) -> "Target":
    from vlmtune.estimate.cards import budget_bytes, find_card

    card = find_card(gpu)
    reserve_bytes = None if reserve_gib is None else int(reserve_gib * GIB)
    budget = budget_bytes(card, platform, reserve_bytes)

    from vlmtune.engine.runtime import prepare_environment

    prepare_environment()
    from vlmtune.estimate.run import Target

    return Target(card, budget, expandable_segments=platform != "windows")


def _estimate(loaded: "LoadedConfig", target: "Target") -> "MemoryReport":
    from vlmtune.engine.runtime import quiet_libraries
    from vlmtune.estimate.run import estimate_largest, estimate_rows
    from vlmtune.models.source import open_model

    quiet_libraries()
    config = loaded.config
    samples = _samples(loaded)
    source = open_model(config.model.name, config.model.revision, loaded.base_dir, offline_catalog=not samples)
    try:
        return estimate_rows(config, source, samples, target) if samples else estimate_largest(config, source, target)
    except (NotImplementedError, RuntimeError) as error:
        raise VlmtuneError(
            f"cannot tell: the step of {config.model.name} cannot be run without storage ({error})",
            "please report the model and the config",
            code=ExitCode.CANNOT_TELL,
        ) from error


def _samples(loaded: "LoadedConfig") -> "list[Sample]":
    """Return the rows of the config; none where there is no data file, as with --model."""
    from vlmtune.cli.rows import read_rows
    from vlmtune.data.samples import require_good

    path = loaded.resolve_path(loaded.config.data.train_path)
    if not path.exists():
        return []
    return require_good(read_rows(loaded, path), loaded.config.data.on_bad_row)


def _print(report: "MemoryReport", target: "Target") -> None:
    from vlmtune.cli import render

    out = render.console()
    verdict = "fits" if report.fits else "does not fit"
    tokens = report.tokens
    out.print(f"{report.model} on {target.card.name}: {verdict}", soft_wrap=True)
    out.print(
        f"{_bar(report)} {report.peak_reserved_bytes / GIB:.2f} of {report.budget_bytes / GIB:.2f} GiB", soft_wrap=True
    )
    sum_of_tokens = f"{tokens['text']} text + {tokens['image']} image = {tokens['total']} tokens"
    out.print(f"longest row: {sum_of_tokens} ({report.worst_row})", soft_wrap=True)
    out.print(f"peak: {report.peak_at.phase}, {report.peak_at.op} at {report.peak_at.module}", soft_wrap=True)
    table = render.table("part", "MiB", "share", right=("MiB", "share"))
    for share in report.breakdown:
        table.add_row(share.name, f"{share.bytes / 2**20:,.1f}", f"{share.bytes / report.device_total_bytes:.1%}")
    table.add_row("total on the device", f"{report.device_total_bytes / 2**20:,.1f}", "100.0%")
    out.print()
    out.print(table)


def _print_levers(levers: "list[Lever]") -> None:
    from vlmtune.cli import render

    table = render.table("lever", "GiB saved", "work", "fits", right=("GiB saved", "work"))
    for lever in levers:
        words = " ".join(f"--set {word}" for word in lever.words)
        table.add_row(words, f"{lever.saved_bytes / GIB:+.2f}", f"×{lever.work:.2f}", "yes" if lever.fits else "no")
    out = render.console()
    out.print()
    out.print(table)
    out.print("work: floating-point operations a row; a card that is busy computing slows down by that much")


def _bar(report: "MemoryReport", width: int = 40) -> str:
    """The peak against the budget; what sticks out is marked."""
    full = round(width * min(1.0, report.peak_reserved_bytes / max(1, report.budget_bytes)))
    over = "" if report.peak_reserved_bytes <= report.budget_bytes else "▶"
    return "█" * full + "░" * (width - full) + over
