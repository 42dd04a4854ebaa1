"""CPU time of the light commands beside `python -c pass`, run in turn: `make bench`.

Machines are noisy: the smallest of ROUNDS runs counts, and each command has its own `python -c pass` beside it.
"""

import os
import resource
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
ROUNDS = 10
LIMIT_S = 0.3
COMMANDS = {
    "vlmtune --help": ["-m", "vlmtune", "--help"],
    "vlmtune presets list": ["-m", "vlmtune", "presets", "list"],
    "vlmtune models list --gpu 8gb": ["-m", "vlmtune", "models", "list", "--gpu", "8gb"],
    "vlmtune validate configs/8gb.yaml": ["-m", "vlmtune", "validate", "configs/8gb.yaml"],
}


def cpu_s(arguments: list[str]) -> float:
    """Return the CPU seconds (user and system) of one run of this Python with `arguments`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> int:
    """Print the table; return 1 if a command is over the limit."""
    table = Table("command", "CPU s", "python -c pass", "ratio")
    slow = False
    for name, arguments in COMMANDS.items():
        pairs = [(cpu_s(arguments), cpu_s(["-c", "pass"])) for _ in range(ROUNDS)]
        own, floor = min(own for own, _ in pairs), min(floor for _, floor in pairs)
        slow |= own > LIMIT_S
        table.add_row(name, f"{own:.3f}", f"{floor:.3f}", f"{own / floor:.0f}")
    console = Console()
    console.print(table)
    python = sys.version.split()[0]
    console.print(f"Python {python}, {os.cpu_count()} cores, smallest of {ROUNDS} runs, limit {LIMIT_S} s")
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
