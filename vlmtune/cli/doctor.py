"""`vlmtune doctor`: whether this machine can train, and what to do where it cannot."""

from typing import TYPE_CHECKING

import typer

from vlmtune.cli.options import JsonOption
from vlmtune.errors import ExitCode

if TYPE_CHECKING:
    from vlmtune.workflow.doctor import Diagnosis

EXAMPLE = "Example: [bold]vlmtune doctor[/bold]"
STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def doctor(as_json: JsonOption = False) -> None:
    """Check libraries, GPU, disk and memory; every problem comes with its remedy."""
    from dataclasses import asdict

    from vlmtune.cli.show import render
    from vlmtune.hardware.machine import read_machine
    from vlmtune.workflow.doctor import check_machine

    if as_json:
        checks = check_machine(read_machine())
        render.print_json({"can_train": can_train(checks), "checks": [asdict(check) for check in checks]})
    else:
        with render.console().status("starting torch to see what works…"):
            checks = check_machine(read_machine())
        _print_checks(checks)
    if not can_train(checks):
        raise typer.Exit(ExitCode.ERROR)


def can_train(checks: "list[Diagnosis]") -> bool:
    """Return whether no finding stops a training run."""
    return all(check.state != "problem" for check in checks)


def _print_checks(checks: "list[Diagnosis]") -> None:
    """Print the findings as a table, each remedy below its finding, and the verdict."""
    from rich.text import Text

    from vlmtune.cli.show import render

    table = render.table("", "check", "found")
    for check in checks:
        found = Text(check.found)
        if check.remedy:
            found.append(f"\n→ {check.remedy}", style="bold")
        table.add_row(Text(check.state, style=STYLES[check.state]), Text(check.name), found)
    out = render.console()
    out.print(table)
    out.print()
    out.print(verdict(checks))


def verdict(checks: "list[Diagnosis]") -> str:
    """Return one sentence about all findings."""
    states = [check.state for check in checks]
    problems, warnings = (_counted(states.count(state), state) for state in ("problem", "warning"))
    if not can_train(checks):
        return f"{problems} to solve before training, {warnings}."
    if "warning" in states:
        return f"This machine can train: no problem, {warnings}."
    return "This machine can train: no problem, no warning."


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
