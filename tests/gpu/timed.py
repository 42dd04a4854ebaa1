"""Times training steps on every visible GPU, one process at a time on each: `make gpu-time`.

Cases of `cases.py`, all rows of one length, weights made on the card. Of each: kernel time, launches and the kernels
that take most of one profiled step; the seconds of the others. What the plan predicts is held against it by
compare_time.py, without a GPU. Results are written after each run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu import measure  # noqa: E402
from gpu.cases import CASES, Case  # noqa: E402
from gpu.profiled import Clock, most_of, seconds_of  # noqa: E402

from vlmtune.runs.versions import library_versions  # noqa: E402

CATALOGUE = Path(__file__).parents[2] / "vlmtune" / "catalog"
STEPS = 7
PROFILED = STEPS - 2


def timed(case: Case) -> Case:
    """Return the case as it is timed: some steps over rows of one length, with the levers of speed that users have."""
    decided = dict.fromkeys(("hardware.lean_lora", "hardware.varlen_attention", "hardware.align_widths"), "auto")
    return replace(case, settings={**decided, **case.settings, "training.max_steps": STEPS}, even=True)


def figures_of(clock: Clock) -> dict:
    """Return what a step takes, and which kernels take most of it."""
    return {
        "step_s": statistics.median(clock.timed()),
        "steps_s": clock.seconds,
        "kernel_ms": seconds_of(clock.spans) * 1e3,
        "launches": len(clock.spans),
        "most_of_a_step": most_of(clock.spans),
    }


def run(name: str, out: Path) -> None:
    """Train one case in this process and write what it took."""
    from vlmtune.engine import train as engine

    case = timed(next(case for case in CASES if case.name == name))
    clock, services = Clock((PROFILED,)), engine._services
    engine._services = lambda plan, folder: [*services(plan, folder), clock]
    measure.run(case, CATALOGUE, out)
    found = json.loads(out.read_text(encoding="utf-8"))
    out.write_text(json.dumps({**found, **figures_of(clock)}), encoding="utf-8")


def main() -> int:
    """Time cases and write after each what is known; return 0 when all are timed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", help="cases to time; all if none is named")
    parser.add_argument("--within", type=float, default=1e9, help="seconds after which no case begins")
    asked = parser.parse_args()
    names, cards, began = asked.names or [case.name for case in CASES], SimpleQueue(), time.monotonic()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    for card in visible.split(","):
        cards.put(card)
    found: list[dict] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(visible.split(","))) as pool:

        def one(name: str) -> str:
            if time.monotonic() - began > asked.within:
                return "not begun"
            card, out = cards.get(), Path(folder) / f"{name}.json"
            try:
                return in_its_own_process(name, out, card)
            finally:
                cards.put(card)

        running = {pool.submit(one, name): name for name in names}
        for done in as_completed(running):
            name = running[done]
            print(name, done.result() or "ok", f"{time.monotonic() - began:.0f} s", flush=True)
            if (shown := Path(folder) / f"{name}.json").exists():
                found.append(json.loads(shown.read_text(encoding="utf-8")))
                known = {"versions": library_versions(), "runs": sorted(found, key=lambda run: run["case"])}
                asked.out.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    return int(len(found) < len(names))


def in_its_own_process(name: str, out: Path, card: str) -> str:
    """Time one case on one card into `out`; return the end of what went wrong, if anything."""
    command = [sys.executable, __file__, "--one", name, str(out)]
    expandable = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    env = {**os.environ, **expandable, "CUDA_VISIBLE_DEVICES": card}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    return done.stderr[-1500:] if done.returncode else ""


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        run(sys.argv[2], Path(sys.argv[3]))
    else:
        sys.exit(main())
