"""By how much losses of equal runs part, step by step: the tables of docs/speed.md. No torch here."""

import json
import statistics
from pathlib import Path

MEASURED = Path(__file__).parent / "measured"
FIRST = "peft"
"""The run that all others of its seed are held against."""
NAMES = {
    "peft": "PEFT's forward",
    "again": "PEFT's forward, once more",
    "lean": "lean adapters",
    "packs": "all that saves kernels, in packs",
    "graphs": "the same packs as CUDA graphs",
    "peft-packs": "PEFT's forward, in packs",
    "lean-packs": "lean adapters, in packs",
}


def parted(run: dict, first: dict) -> tuple[float, float]:
    """Return by how much the losses of two runs differ, in the mean of the steps and at most."""
    differences = [abs(one - other) for one, other in zip(run["losses"], first["losses"], strict=True)]
    return statistics.fmean(differences), max(differences)


def losses_table(file: str) -> str:
    """Return where each kind of run began and ended, and how far its seeds came from those of the first kind."""
    runs = json.loads((MEASURED / file).read_text(encoding="utf-8"))["runs"]
    firsts = {run["seed"]: run for run in runs if run["run"] == FIRST}
    lines = [
        "| Run | Seeds | Loss, first step | Mean of the last ten | Apart, mean of the steps | Apart at most |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for kind in dict.fromkeys(run["run"] for run in runs):
        some = sorted((run for run in runs if run["run"] == kind), key=lambda run: run["seed"])
        means, most = zip(*(parted(run, firsts[run["seed"]]) for run in some), strict=True)
        starts = ", ".join(f"{run['losses'][0]:.3f}" for run in some)
        ends = ", ".join(f"{statistics.fmean(run['losses'][-10:]):.4f}" for run in some)
        apart = ["–", "–"] if kind == FIRST else [f"{statistics.fmean(means):.1e}", f"{max(most):.1e}"]
        lines.append(f"| {NAMES[kind]} | {len(some)} | {starts} | {ends} | {' | '.join(apart)} |")
    return "\n".join(lines) + "\n"
