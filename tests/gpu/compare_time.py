"""Predicts the timed runs without a GPU and writes how far off that is: `make gpu-time-errors`.

With the versions of torch and transformers that were timed, as compare.py. The step that was profiled is simulated and
priced by `estimate/timing`; runs of `time.json` were seen while rules were made, those of `time-blind.json` were
predicted before they were timed (`--predict`).
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu.cases import CASES  # noqa: E402
from gpu.compare import MEASURED, prepared  # noqa: E402
from gpu.timed import PROFILED, timed  # noqa: E402

from vlmtune.estimate.simulate.steps import steps_of_run  # noqa: E402
from vlmtune.estimate.timing.kernels import Kernels  # noqa: E402
from vlmtune.estimate.timing.predict import COPIES, spent  # noqa: E402
from vlmtune.estimate.timing.rates import Rates  # noqa: E402
from vlmtune.hardware.cards import find_card  # noqa: E402

SEEN, BLIND, PREDICTED = (MEASURED / f"time{name}.json" for name in ("", "-blind", "-predicted"))
ERRORS = MEASURED / "time-errors.md"
CARD = "h100"


def step_of(name: str) -> Kernels:
    """Return what the profiled step of a case launches."""
    case = timed(next(case for case in CASES if case.name == name))
    with tempfile.TemporaryDirectory() as folder:
        made = prepared(case, Path(folder) / "case")
        step = steps_of_run(made.plan, made.lengths)[PROFILED]
        log = made.simulated([step])
    launched = sum((batch.images + batch.tokens for batch in log.batches), start=Counter())
    return launched + log.updates[0]


def predicted(name: str) -> dict:
    """Return what the profiled step of a case is predicted to take."""
    kernels, rates = step_of(name), Rates(find_card(CARD))
    whole = spent(kernels, rates)
    by_kind: dict[str, list] = {}
    for kernel, times in kernels.items():
        share = by_kind.setdefault(kernel.kind, [0.0, 0])
        share[0], share[1] = share[0] + times * rates.seconds(kernel) * 1e3, share[1] + times
    computing = {kind: share for kind, share in by_kind.items() if kind not in COPIES}
    shown = {kind: [round(ms, 2), times] for kind, (ms, times) in sorted(computing.items())}
    return {
        "case": name,
        "kernel_ms": round(whole.kernels_s * 1e3, 2),
        "launches": int(whole.launches),
        "bus_ms": round(whole.bus_s * 1e3, 2),
        "kinds": shown,
    }


def runs_of(path: Path) -> list[dict]:
    """Return the runs of a file, none where there is none."""
    return json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []


def table_of(seen: list[dict], blind: list[dict], found: dict[str, dict]) -> str:
    """Return the errors as Markdown: of both kinds of runs, then of every run."""
    lines = [
        "# Predicted against measured kernel time",
        "",
        "In percent of what was measured, below zero where the prediction is too short; written by",
        "`make gpu-time-errors`. Seen: runs by which rules were made. Blind: predicted before they were timed.",
        "",
        "| Runs | Number | Kernel time: median size | Lowest | Highest | Launches: median size | Lowest | Highest |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
        *(_line(name, runs, found) for name, runs in (("seen", seen), ("blind", blind)) if runs),
        "",
        "| Run | Kernel ms, measured | Predicted | Off | Launches, measured | Predicted | Off | Step s, measured |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
        *(_row(run, found[run["case"]]) for run in (*seen, *blind)),
    ]
    return "\n".join(lines) + "\n"


def _off(run: dict, made: dict, key: str) -> float:
    return 100 * (made[key] / run[key] - 1)


def _line(name: str, runs: list[dict], found: dict[str, dict]) -> str:
    cells = []
    for key in ("kernel_ms", "launches"):
        off = [_off(run, found[run["case"]], key) for run in runs]
        cells += [f"{statistics.median(map(abs, off)):.1f}", f"{min(off):+.1f}", f"{max(off):+.1f}"]
    return f"| {name} | {len(runs)} | {' | '.join(cells)} |"


def _row(run: dict, made: dict) -> str:
    cells = []
    for key in ("kernel_ms", "launches"):
        cells += [f"{run[key]:.0f}", f"{made[key]:.0f}", f"{_off(run, made, key):+.1f}"]
    return f"| {run['case']} | {' | '.join(cells)} | {run['step_s']:.2f} |"


def main() -> None:
    """Write the table; or with `--predict` what cases are predicted to take, before they are timed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help="cases; all that were timed if none is named")
    parser.add_argument("--predict", action="store_true", help="write time-predicted.json for all cases, or these")
    parser.add_argument("--workers", type=int, default=None)
    asked = parser.parse_args()
    seen, blind = (
        [run for run in runs_of(path) if not asked.names or run["case"] in asked.names] for path in (SEEN, BLIND)
    )
    names = asked.names or [case.name for case in CASES] if asked.predict else [run["case"] for run in (*seen, *blind)]
    found: dict[str, dict] = {}
    with ProcessPoolExecutor(asked.workers, mp_context=get_context("spawn")) as pool:
        for made in pool.map(predicted, names):
            found[made["case"]] = made
            print(f"{made['case']:32} {made['kernel_ms']:9.1f} ms {made['launches']:7d} launches", flush=True)
            if asked.predict:
                PREDICTED.write_text(json.dumps(list(found.values()), indent=1) + "\n", encoding="utf-8")
    if not asked.predict and not asked.names:
        ERRORS.write_text(table_of(seen, blind, found), encoding="utf-8")


if __name__ == "__main__":
    main()
