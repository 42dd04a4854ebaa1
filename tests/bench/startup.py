"""CPU time of light commands and of an estimate beside what their libraries take to load, in turn: `make bench`.

Machines differ and are noisy: the smallest of several runs counts, and a limit is a multiple of what the same machine
takes in the same minute for the imports that no such command could do without.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

CONFIG = Path(__file__).parents[2] / "configs" / "8gb.yaml"
ESTIMATE = "estimate-vram --model llava-hf/llava-1.5-7b-hf --preset 8gb --gpu 8gb"


COMMAND_LINE = "import typer, pydantic, rich.table, yaml"
MODELS = "import torch, torchvision, transformers, peft, accelerate, bitsandbytes"


@dataclass(frozen=True)
class Command:
    """What is measured, and what it may take."""

    words: str
    limit: float
    """In multiples of what `libraries` take."""
    libraries: str = COMMAND_LINE
    rounds: int = 10


COMMANDS = (
    Command("--help", 2),
    Command("presets list", 2.5),
    Command("models list --gpu 8gb", 3.5),
    Command(f"validate {CONFIG.name}", 4.5),
    Command(ESTIMATE, 3.5, MODELS, rounds=3),
    Command(f"{ESTIMATE} --fast", 2, MODELS, rounds=3),
)


def cpu_s(arguments: list[str]) -> float:
    """Return the CPU seconds (user and system) of one run of this Python with `arguments`; no estimate is kept.

    In a folder that has the config and nothing else: beside it may lie the demo's rows, and reading these takes longer.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(CONFIG, folder)
        environment = {**os.environ, "XDG_CACHE_HOME": f"{folder}/cache"}
        command = [sys.executable, *arguments]
        subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> int:
    """Print the table; return 1 if a command is over its limit."""
    table = Table("vlmtune …", "CPU s", "libraries alone", "ratio", "limit")
    slow = False
    for command in COMMANDS:
        pairs = [
            (cpu_s(["-m", "vlmtune", *command.words.split()]), cpu_s(["-c", command.libraries]))
            for _ in range(command.rounds)
        ]
        own, floor = min(own for own, _ in pairs), min(floor for _, floor in pairs)
        slow |= own > command.limit * floor
        table.add_row(command.words, f"{own:.3f}", f"{floor:.3f}", f"{own / floor:.1f}", f"{command.limit:g}")
    console = Console()
    console.print(table)
    console.print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, the smallest of several runs each")
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
