"""Runs that are killed at random moments and go on, again and again, until they end: `make kills` (KILLS=200).

Each ends with the weights and the log of a run that nobody disturbed, bit for bit, or it is counted as lost.
"""

import os
import random
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

from ordeals import HANGS_AFTER_S, KINDS, Ended, Run, make_project
from rich.console import Console
from rich.table import Table

MOST_KILLS = 8
"""Of one run: then it may end."""
SIGNALS = (signal.SIGKILL,) * 5 + (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def disturb(run: Run, usual_s: float, chance: random.Random) -> tuple[signal.Signals | None, Ended]:
    """Begin or go on, and send a signal at some moment; return it, None where the run had ended before."""
    process = run.begin()
    ended = run.wait(process, chance.uniform(0, usual_s))
    if ended:
        return None, ended
    number = chance.choice(SIGNALS)
    os.kill(process, number)
    ended = run.wait(process)
    if ended is None:
        os.kill(process, signal.SIGKILL)
        run.wait(process)
        return number, Ended(98, f"it hangs: {number.name} has not ended it in {HANGS_AFTER_S} s", HANGS_AFTER_S)
    return number, ended


def main(num_kills: int, seed: int) -> int:
    """Print what became of the runs; return 1 where one was lost."""
    chance, counts, lost = random.Random(seed), {kind: Counter() for kind in KINDS}, []
    with tempfile.TemporaryDirectory() as folder:
        make_project(Path(folder))
        straight = {}
        for kind in KINDS:
            run = Run(Path(folder), f"straight-{kind.split()[0]}", kind)
            ended = run.finish()
            assert ended.code == 0, ended.output
            straight[kind] = (ended.seconds, run.result())
        while sum(count["kills"] for count in counts.values()) < num_kills:
            kind = min(KINDS, key=lambda kind: counts[kind]["kills"])
            lost += endure(Run(Path(folder), "killed", kind), *straight[kind], chance, counts[kind])
    table = Table("run", "kills", *(number.name for number in dict.fromkeys(SIGNALS)), "runs", "bit-equal")
    for kind, count in counts.items():
        signals = (str(count[number]) for number in dict.fromkeys(SIGNALS))
        table.add_row(kind, str(count["kills"]), *signals, str(count["runs"]), str(count["equal"]))
    total = sum(counts.values(), Counter())
    console = Console(width=120)
    console.print(table)
    console.print(f"{total['kills']} kills, {total['runs']} runs, {total['equal']} bit-equal, {len(lost)} lost")
    for one in lost:
        console.print(one, markup=False)
    return int(bool(lost))


def endure(run: Run, usual_s: float, expected: tuple, chance: random.Random, count: Counter) -> list[str]:
    """Disturb a run until it ends; return in words how it was lost."""
    history: list[str] = []
    while True:
        number, ended = disturb(run, usual_s, chance) if len(history) < MOST_KILLS else (None, run.finish())
        history.append(f"{number.name if number else 'ended'} → {ended.code}")
        count.update(["kills", number] if number else [])
        # What data workers print whose parent was killed is no traceback of the run.
        if (ended.has_traceback and ended.code != -signal.SIGKILL) or ended.code not in (0, 130, -(number or 0)):
            break
        if ended.code == 0:
            count["runs"] += 1
            is_equal = run.result() == expected
            count["equal"] += is_equal
            run.remove()
            return [] if is_equal else [f"{run.kind}: other weights or another log after {', '.join(history)}"]
    run.remove()
    return [f"{run.kind}: {', '.join(history)}\n{ended.output}"]


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 14))
