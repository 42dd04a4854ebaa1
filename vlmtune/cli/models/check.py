"""`vlmtune models check`: what a model must hold, tried on a tiny random one of its config."""

from pathlib import Path
from typing import Annotated

import typer

from vlmtune.cli.options import JsonOption
from vlmtune.errors import ExitCode, given_as

EXAMPLE = "Example: [bold]vlmtune models check Qwen/Qwen3.5-4B[/bold]"


def check_model(
    model: Annotated[str, typer.Argument(metavar="FOLDER_OR_ID", help="A folder with a config.json, or a hub id.")],
    as_json: JsonOption = False,
) -> None:
    """Try what a model must hold on a tiny random model of its config: no weights are read.

    It trains two steps, saves and reloads to equal logits, generates, and is estimated. Exit code 1: something fails.
    """
    from tempfile import TemporaryDirectory

    from vlmtune.cli.show import render
    from vlmtune.engine.runtime import prepare_environment, quiet_libraries
    from vlmtune.hub.source import open_model

    prepare_environment()
    quiet_libraries()
    with given_as("model.name", "FOLDER_OR_ID"):
        source = open_model(model, None, Path.cwd(), offline_catalog=True)
    from vlmtune.contract import check

    # Windows removes no file that a model has mapped into memory.
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        findings = check(source, Path(folder))
    fails = not all(finding.holds for finding in findings)
    if as_json:
        from dataclasses import asdict

        points = [asdict(finding) for finding in findings]
        render.print_json(
            {"model": model, "model_type": source.config["model_type"], "holds": not fails, "points": points}
        )
    else:
        table = render.table("point", "holds", "reason")
        for finding in findings:
            table.add_row(finding.name, "yes" if finding.holds else "no", finding.reason)
        render.console().print(table)
    if fails:
        raise typer.Exit(ExitCode.ERROR)
