"""The commands and flags, frozen: what scripts rely on changes here first, on purpose."""

import typer

from vlmtune.cli import app

SURFACE = {
    "": ["--version", "--install-completion", "--show-completion"],
    "train": ["CONFIG", "--set", "--dry-run", "--resume", "--force", "--model", "--json"],
    "validate": ["CONFIG", "--set", "--json", "--schema", "--preview"],
    "estimate-vram": [
        "CONFIG",
        "--model",
        "--preset",
        "--gpu",
        "--platform",
        "--reserve-gib",
        "--explain",
        "--fast",
        "--compare",
        "--set",
        "--json",
    ],
    "plan": [
        "--model",
        "--gpu",
        "--data",
        "--preset",
        "-o",
        "--force",
        "--platform",
        "--reserve-gib",
        "--gpus",
        "--json",
    ],
    "evaluate": [
        "RUN",
        "--data",
        "--base",
        "--compare",
        "--metric",
        "--max-new-tokens",
        "--batch-size",
        "--checkpoint",
        "--model",
        "--json",
    ],
    "generate": [
        *("RUN", "--prompt", "--prompts", "--image", "--base", "--temperature", "--top-p", "--max-new-tokens"),
        *("--checkpoint", "--model", "--json"),
    ],
    "chat": ["RUN", "--base", "--temperature", "--top-p", "--max-new-tokens", "--checkpoint", "--model"],
    "predict": [
        "RUN",
        "FILE_OR_FOLDER",
        "--prompt",
        "-o",
        "--force",
        "--max-new-tokens",
        "--batch-size",
        "--checkpoint",
        "--model",
        "--json",
    ],
    "merge": ["RUN", "-o", "--checkpoint", "--model", "--json"],
    "doctor": ["--json"],
    "calibrate": ["--json"],
    "guide": ["--model", "--gpu", "--md", "--json"],
    "models list": ["--gpu", "--preset", "--json"],
    "models show": ["MODEL", "--json"],
    "models check": ["FOLDER_OR_ID", "--json"],
    "presets list": ["--json"],
    "presets show": ["NAME", "--json"],
    "presets copy": ["NAME", "FILE", "--force"],
}


def surface_of(command, path=()) -> dict[str, list[str]]:
    """Every command with its arguments and flags in the order of its help."""
    found = {}
    params = [
        param.opts[0] if param.opts and param.opts[0].startswith("-") else (param.metavar or param.name.upper())
        for param in command.params
        if param.name != "help"
    ]
    if params or not hasattr(command, "commands"):
        found[" ".join(path)] = params
    for name, inner in getattr(command, "commands", {}).items():
        found |= surface_of(inner, (*path, name))
    return found


def test_commands_and_flags_are_the_agreed_ones():
    assert surface_of(typer.main.get_command(app)) == SURFACE


def test_every_command_shows_an_example(run_cli):
    for command in SURFACE:
        text = run_cli(*command.split(), "--help").stdout
        assert "Example: vlmtune" in text or "Start: vlmtune" in text, command
