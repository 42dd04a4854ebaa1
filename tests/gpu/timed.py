"""Times training steps on every visible GPU, one run after another on each: `make gpu-time`.

Cases of `cases.py`, all rows of one length, weights made on the card. Of each: kernel time, launches and the kernels
that take most of one profiled step; the seconds of the others, and of these without waiting for rows (`computing_s`,
what is predicted). What the plan predicts is held against it by compare_time.py, without a GPU. Results are written
after each run. With `--calibrate` each card is measured first, by `vlmtune calibrate`, and its runs have the speeds
beside them, from which seconds of a step are predicted. On machines that others use the processor is a fifth
slower one minute than the next, so calibrate's own steps are trained again before each run.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu import measure  # noqa: E402
from gpu.cases import CASES, Case  # noqa: E402
from gpu.profiled import Clock, each_in_its_own, free_card, most_of, seconds_of  # noqa: E402

from vlmtune.runs.versions import library_versions  # noqa: E402

if TYPE_CHECKING:
    from vlmtune.estimate.report import StepTime
    from vlmtune.workflow.calibrate import SmallRun

CATALOGUE = Path(__file__).parents[2] / "vlmtune" / "catalog"
OWN = Path(__file__)
STEPS = 7
PROFILED = STEPS - 2
CALIBRATION, CALIBRATE = "calibration.txt", "CALIBRATE_FIRST"
"""A file beside a card's runs; what asks its process for it."""
CALIBRATION_S = 100
"""At most."""


def timed(case: Case) -> Case:
    """Return the case as it is timed: some steps over rows of one length, with the levers of speed that users have."""
    decided = dict.fromkeys(("hardware.lean_lora", "hardware.varlen_attention", "hardware.align_widths"), "auto")
    return replace(case, settings={**decided, **case.settings, "training.max_steps": STEPS}, even=True)


def figures_of(clock: Clock) -> dict:
    """Return what a step takes, and which kernels take most of it."""
    return {
        "step_s": statistics.median(clock.timed()),
        "computing_s": statistics.median(clock.timed(clock.computing_s)),
        "steps_s": clock.seconds,
        "kernel_ms": seconds_of(clock.spans) * 1e3,
        "launches": len(clock.spans),
        "most_of_a_step": most_of(clock.spans),
    }


def run(case: Case, out: Path, cap_bytes: int | None = None, **more) -> None:
    """Train one case with no more of the card than a cap, and write what it took, and more that is known.

    No other run may have been profiled in this process (`each_in_its_own`).
    """
    from vlmtune.engine import train as engine

    clock = Clock((PROFILED,))
    services = engine._services
    engine._services = lambda plan, folder: [*services(plan, folder), clock]
    measure.run(case, CATALOGUE, part := out.with_suffix(".part"), cap_bytes)
    found = json.loads(part.read_text(encoding="utf-8"))
    found |= ({} if "out_of_memory" in found else figures_of(clock)) | more
    if (measured := out.with_name(CALIBRATION)).exists():
        found["calibration"] = json.loads(measured.read_text(encoding="utf-8"))
    part.write_text(json.dumps(found), encoding="utf-8")
    part.rename(out)


def calibrate(folder: Path) -> None:
    """Run `vlmtune calibrate` and keep what it says, of what failed its last words: cases are timed anyway."""
    env = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    command = ["timeout", str(CALIBRATION_S), sys.executable, "-m", "vlmtune", "calibrate", "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    found = json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr[-1500:]}
    (folder / CALIBRATION).write_text(json.dumps(found), encoding="utf-8")


def small_run(folder: Path) -> tuple["SmallRun", "StepTime"]:
    """Return the run that `vlmtune calibrate` trains, and what its step is predicted to launch."""
    from vlmtune.estimate.given_rows import GivenRows
    from vlmtune.estimate.run import estimate_plan
    from vlmtune.hardware.at_hand import target_at_hand
    from vlmtune.workflow import calibrate

    folder.mkdir()
    small = calibrate.small_run(folder)
    return small, estimate_plan(small.plan, small.source, GivenRows(small.rows), target_at_hand()).time


def launch_now_s(small: "SmallRun", predicted: "StepTime") -> float | None:
    """Return what a plain launch takes at the time of asking; None where the card was busy."""
    from vlmtune.estimate.timing.measured import measured_plain_launch_s
    from vlmtune.workflow.calibrate import trained

    with tempfile.TemporaryDirectory() as folder:
        *_, steps_s = trained(small, Path(folder))
    free_card()
    return measured_plain_launch_s(steps_s, predicted)


def run_all(names: list[str], folder: Path) -> None:
    """Train these cases one after another."""
    cases = [timed(next(case for case in CASES if case.name == name)) for name in names]
    small = None
    if CALIBRATE in os.environ:
        if not (measured := folder / CALIBRATION).exists():
            calibrate(folder)
        if "error" not in json.loads(measured.read_text(encoding="utf-8")):
            [small] = each_in_its_own(small_run, [(folder / f"small-{names[0]}",)])
    for _ in each_in_its_own(run_beside, [(small, case, folder / f"{case.name}.json") for case in cases]):
        pass


def run_beside(small: "tuple[SmallRun, StepTime] | None", case: Case, out: Path) -> None:
    """Train a case, and before it the small run, which is not profiled; nothing else in this process."""
    launch_s = launch_now_s(*small) if small else None
    run(case, out, plain_launch_beside_s=launch_s)


def main() -> int:
    """Time cases and write after each what is known; return 0 when all are timed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", help="cases to time; all if none is named")
    parser.add_argument("--calibrate", action="store_true", help="measure each card first: half a minute")
    parser.add_argument("--within", type=float, default=1e9, help="seconds after which nothing is waited for")
    asked = parser.parse_args()
    names, began = asked.names or [case.name for case in CASES], time.monotonic()
    os.environ.update({CALIBRATE: "1"} if asked.calibrate else {})
    num_timed = on_every_card(OWN, partial(dealt, names), asked.out, asked.within)
    print(f"{num_timed} of {len(names)} cases timed, {time.monotonic() - began:.0f} s")
    return int(num_timed < len(names))


def dealt(names: list[str], num_cards: int) -> list[list[str]]:
    """Return what each process takes of the names, round about."""
    return [names[number::num_cards] for number in range(num_cards)]


def on_every_card(
    script: Path, shares: Callable[[int], list[list[str]]], out: Path, within_s: float, at_a_time: int = 1
) -> int:
    """Let a script do what is named, in turn on every visible card, for so long; return how much of it is written.

    The script is given `--these`, a folder for its results and the names.

    Args:
        shares: number of processes → what each of them takes, in its order.
        at_a_time: processes on a card.
    """
    began, cards = time.monotonic(), visible_cards() * at_a_time
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shared = enumerate(zip(cards, shares(len(cards)), strict=True))
        on_cards = [OnCard(card, names, folder / str(number), script) for number, (card, names) in shared]
        try:
            while any([one.goes_on() for one in on_cards]) and time.monotonic() - began < within_s:  # noqa: C419  all
                time.sleep(1)
                written(folder, out)
        finally:
            for one in on_cards:
                one.end()
        return written(folder, out)


def visible_cards() -> list[str]:
    """Return the numbers of the GPUs that processes may be started on."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def written(folder: Path, out: Path) -> int:
    """Write what is known into one file; return how many cases that are."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/*.json"))]
    out.write_text(json.dumps({"versions": library_versions(), "runs": found}, indent=1) + "\n", encoding="utf-8")
    return len(found)


class OnCard:
    """The cases of one card, or of a share of it: by one process, and behind one that fails by another."""

    def __init__(self, card: str, names: list[str], folder: Path, script: Path) -> None:
        self.card, self.left, self.folder, self.script = card, names, folder, script
        self.folder.mkdir()
        self.process: subprocess.Popen | None = None

    def goes_on(self) -> bool:
        """Begin what is left where nothing runs; return whether anything does."""
        if self.process and self.process.poll() is None:
            return True
        if self.process and self.process.returncode and self.left:
            failed = next(name for name in self.left if not (self.folder / f"{name}.json").exists())
            print(failed, self.said.read_text(encoding="utf-8")[-1500:], flush=True)
            self.left = self.left[self.left.index(failed) + 1 :]
        elif self.process:
            self.left = []
        if self.left:
            self._begin()
        return bool(self.left)

    def _begin(self) -> None:
        self.said = self.folder / "said.txt"
        env = {**os.environ, "PYTORCH_ALLOC_CONF": "expandable_segments:True", "CUDA_VISIBLE_DEVICES": self.card}
        command = [sys.executable, str(self.script), "--these", str(self.folder), *self.left]
        with self.said.open("w") as said:
            self.process = subprocess.Popen(command, env=env, stdout=said, stderr=said, start_new_session=True)

    def end(self) -> None:
        """End what runs still, with the processes that it has started: they would keep the card."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)


if __name__ == "__main__":
    if sys.argv[1] == "--these":
        run_all(sys.argv[3:], Path(sys.argv[2]))
    else:
        sys.exit(main())
