"""Predicts timed runs without a GPU, and writes how far off that was: `make gpu-time-errors`.

`--predict` simulates the step that is profiled, with the versions of torch and transformers that are timed, as
compare.py does, prices it by `estimate/timing` and keeps that in time-predicted.json: before a run is timed, by the
code that it will run. Later code launches other kernels: of a case that is there already only what was not told then is
added. Without it the table is made of what is kept: runs of `time.json` were seen while rules were made, those of
`time-blind.json` were not. Where the card of a run was calibrated, the seconds of a step are held against what was
measured too, by what `calibrate` took for a launch then: at first for any (`launch_s`), now for a plain one. Runs that
have both are those that the rule of who calls was made by; their `plain_launch_s` was told apart from the other by the
kernels of calibrate's own step: 21,978 launches are 102,618 plain ones.
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
from vlmtune.estimate.timing.predict import spent  # noqa: E402
from vlmtune.estimate.timing.rates import Rates  # noqa: E402
from vlmtune.hardware.cards import find_card  # noqa: E402

SEEN, BLIND, PREDICTED = (MEASURED / f"time{name}.json" for name in ("", "-blind", "-predicted"))
ERRORS = MEASURED / "time-errors.md"
WITHIN = 25
"""Percent, of the seconds of a step: the goal where the card was calibrated."""
CARDS = {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200"}


def step_of(name: str) -> tuple[Kernels, Kernels]:
    """Return what the batches of a case's profiled step launch, and its update."""
    case = timed(next(case for case in CASES if case.name == name))
    with tempfile.TemporaryDirectory() as folder:
        made = prepared(case, Path(folder) / "case")
        step = steps_of_run(made.plan, made.lengths)[PROFILED]
        log = made.simulated([step])
    return sum((batch.images + batch.tokens for batch in log.batches), start=Counter()), log.updates[0]


def predicted(name: str) -> dict:
    """Return what the profiled step of a case is predicted to take on each card that runs were timed on."""
    (of_batches, of_update), found = step_of(name), {"case": name}
    for key in CARDS.values():
        rates = Rates(find_card(key))
        took, update = spent(of_batches + of_update, rates), spent(of_update, rates)
        found[key] = {
            "kernel_ms": round(took.kernels_s * 1e3, 2),
            "launches": int(took.launches),
            "plain_launches": int(took.plain_launches),
            "bus_ms": round(took.bus_s * 1e3, 2),
            "update_kernel_ms": round(update.kernels_s * 1e3, 2),
            "update_plain_launches": int(update.plain_launches),
        }
    return found


def runs_of(path: Path) -> list[dict]:
    """Return the runs of a file."""
    return json.loads(path.read_text(encoding="utf-8"))["runs"]


def table_of(seen: list[dict], blind: list[dict], found: dict[str, dict]) -> str:
    """Return the errors as Markdown: of both kinds of runs, then of every run."""
    first = [run for run in seen if "first_predicted" in run]
    lines = [
        "# Predicted against measured kernel time",
        "",
        "In percent of what was measured, below zero where the prediction is too short; written by",
        "`make gpu-time-errors`. Seen: runs by which rules were made. Blind: predicted before they were timed.",
        "Blind at first: predicted before, and seen since, as they were far off. Seconds of a step are by what",
        "`vlmtune calibrate` said of a launch when the run was timed.",
        "",
        "| Runs | Number | Kernel time: median size | Lowest | Highest | Launches: median size | Lowest | Highest |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
        *(_line(name, runs, found) for name, runs in (("seen", seen), ("blind", blind))),
        _line("blind at first, as predicted then", first, {run["case"]: run["first_predicted"] for run in first}),
        "",
        *_seconds(blind, found),
        "",
        "| Run | Card | Kernel ms, measured | Predicted | Off | Launches, measured | Predicted | Off "
        "| Step s, measured | Predicted | Off |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --: |",
        *(_row(run, found[run["case"]]) for run in (*seen, *blind)),
    ]
    return "\n".join(lines) + "\n"


def _off(run: dict, made: dict, key: str) -> float:
    return 100 * (_made(run, made)[key] / run[key] - 1)


def _line(name: str, runs: list[dict], found: dict[str, dict]) -> str:
    cells = []
    for key in ("kernel_ms", "launches"):
        off = [_off(run, found[run["case"]], key) for run in runs]
        cells += [f"{statistics.median(map(abs, off)):.1f}", f"{min(off):+.1f}", f"{max(off):+.1f}"]
    return f"| {name} | {len(runs)} | {' | '.join(cells)} |"


def _seconds(runs: list[dict], found: dict[str, dict]) -> list[str]:
    lines = [
        f"| Blind, on a calibrated card: a launch by | Number | Seconds of a step: median size | Lowest | Highest "
        f"| Within {WITHIN} % |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    by_rule: dict[str, list[float]] = {}
    for run in runs:
        for rule, off in _seconds_off(run, found[run["case"]]).items():
            by_rule.setdefault(rule, []).append(off)
    for rule, off in by_rule.items():
        size, within = f"{statistics.median(map(abs, off)):.1f}", sum(abs(one) <= WITHIN for one in off)
        lines.append(f"| {rule} | {len(off)} | {size} | {min(off):+.1f} | {max(off):+.1f} | {within} |")
    return lines


def _made(run: dict, made: dict) -> dict:
    """Return what was predicted of a run on its card."""
    return made[CARDS[run["gpu"]]]


def _step_s(card: dict, launches: str, launch_s: float) -> float:
    """Return the seconds of a step by what a launch takes: of its batches, then of its update where that is told."""
    update_s = card.get("update_kernel_ms", 0) / 1e3, card.get(f"update_{launches}", 0) * launch_s
    kernels_s, launching_s = card["kernel_ms"] / 1e3 - update_s[0], card[launches] * launch_s - update_s[1]
    return max(kernels_s, launching_s, card["bus_ms"] / 1e3) + max(update_s)


def _steps_s(run: dict, made: dict) -> dict[str, float]:
    """Return the predicted seconds of a step where the card was calibrated, by the rule of what a launch takes."""
    card, of = _made(run, made), run.get("launch_of")
    by_mean = {of: _step_s(card, "launches", run["launch_s"])} if "launch_s" in run else {}
    if "plain_launch_s" not in run:
        return by_mean
    known = f"{of}, by who calls" + (": seen" if by_mean else "")
    found = by_mean | {known: _step_s(card, "plain_launches", run["plain_launch_s"])}
    if beside_s := run.get("plain_launch_beside_s"):
        found[f"{known}, just before the run"] = _step_s(card, "plain_launches", beside_s)
    return found


def _seconds_off(run: dict, made: dict) -> dict[str, float]:
    return {rule: 100 * (step_s / _measured_s(run) - 1) for rule, step_s in _steps_s(run, made).items()}


def _measured_s(run: dict) -> float:
    """Return the seconds of a step without waiting for rows, which are not predicted; older runs did not tell these."""
    return run.get("computing_s", run["step_s"])


def _row(run: dict, made: dict) -> str:
    cells = []
    for key in ("kernel_ms", "launches"):
        expected = _made(run, made)[key]
        cells += [f"{run[key]:.0f}", f"{expected:.0f}", f"{_off(run, made, key):+.1f}"]
    cells.append(f"{_measured_s(run):.2f}")
    steps_s, off = (list(of(run, made).values()) for of in (_steps_s, _seconds_off))
    cells += [f"{steps_s[0]:.2f}", f"{off[0]:+.1f}"] if off else ["", ""]
    return f"| {run['case']} | {run['gpu'].split()[1]} | {' | '.join(cells)} |"


def kept() -> dict[str, dict]:
    """Return the predictions that were made, by case."""
    return {made["case"]: made for made in json.loads(PREDICTED.read_text(encoding="utf-8"))}


def main() -> None:
    """Write the table; or with `--predict` what cases are predicted to take, before they are timed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--predict", nargs="+", metavar="CASE", help="write into time-predicted.json what these take")
    parser.add_argument("--workers", type=int, default=None)
    asked = parser.parse_args()
    if not asked.predict:
        ERRORS.write_text(table_of(runs_of(SEEN), runs_of(BLIND), kept()), encoding="utf-8")
        return
    with ProcessPoolExecutor(asked.workers, mp_context=get_context("spawn")) as pool:
        new = list(map(_shown, pool.map(predicted, asked.predict)))
    found = kept()
    for made in new:
        then = found.get(made["case"], made)
        found[made["case"]] = then | {card: made[card] | then[card] for card in CARDS.values()}
    PREDICTED.write_text(json.dumps([*found.values()], indent=1) + "\n", encoding="utf-8")


def _shown(made: dict) -> dict:
    print(json.dumps(made), flush=True)
    return made


if __name__ == "__main__":
    main()
