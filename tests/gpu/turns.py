"""Runs of several processes that take turns on the GPUs of a machine: all start at once, and each waits for its own."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

READY, GO, RESULT = "ready", "go", "result.json"
LOOKED_EVERY_S = 0.1


@dataclass
class Turn:
    """A run: its processes, and the folder by which they hear of their turn and tell what they found."""

    name: str
    gpus: Sequence[int]
    folder: Path
    commands: list[tuple[list[str], dict[str, str]]]
    """Of each process, with what its environment has besides."""
    processes: list[subprocess.Popen] = field(default_factory=list)

    def begin(self) -> None:
        """Start the processes; they get ready."""
        self.folder.mkdir()
        for number, (words, env) in enumerate(self.commands):
            with (self.folder / f"said-{number}").open("w") as said:
                how = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": said, "start_new_session": True}
                self.processes.append(subprocess.Popen(words, env=os.environ | env, **how))

    def ended(self) -> bool:
        """Return whether all have ended, or one has failed."""
        codes = [process.poll() for process in self.processes]
        return None not in codes or any(codes)

    def taken(self, until: float, needed_s: float) -> str:
        """Let them train, if there is time; return the end of what they said where there is no result."""
        ready = [self.folder / f"{READY}-{number}" for number in range(len(self.gpus))]
        while not all(file.exists() for file in ready) and not self.ended() and time.monotonic() < until:
            time.sleep(LOOKED_EVERY_S)
        if time.monotonic() < until - needed_s:
            (self.folder / GO).touch()
            while not self.ended() and time.monotonic() < until:
                time.sleep(LOOKED_EVERY_S)
        self.end()
        if (self.folder / RESULT).exists():
            return ""
        return "not done in time, or failed: " + "\n".join(
            file.read_text(errors="replace")[-1500:] for file in sorted(self.folder.glob("said-*"))
        )

    def end(self) -> None:
        """Leave none of them, and of those that they have started, behind."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for_turn(folder: Path, number: int) -> None:
    """Be ready, as a process of a run, and wait; end with whoever started this one."""
    (folder / f"{READY}-{number}").touch()
    parent = os.getppid()
    while not (folder / GO).exists():
        if os.getppid() != parent:
            raise SystemExit("whoever started this is gone")
        time.sleep(LOOKED_EVERY_S)


def take_turns(
    turns: list[Turn], at_a_time: int, until: float, needed_s: float, told: Callable[[Turn, str], None]
) -> None:
    """Let each have its turn in their order, so many at a time on each GPU; `told` hears of each, one at a time."""
    room = {gpu: threading.Semaphore(at_a_time) for turn in turns for gpu in turn.gpus}
    lock = threading.Lock()

    def take(turn: Turn) -> None:
        with ExitStack() as held:
            for gpu in sorted(turn.gpus):  # all in one order: no two wait for each other
                held.enter_context(room[gpu])
            failed = turn.taken(until, needed_s)
        with lock:
            told(turn, failed)

    try:
        for turn in turns:
            turn.begin()
        with ThreadPoolExecutor(len(turns)) as pool:
            list(pool.map(take, turns))
    finally:
        for turn in turns:
            turn.end()
