"""A try of a run in several processes, each on a GPU of its own: started here, or by torchrun."""

import multiprocessing
import os
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from vlmtune.engine.ranks.single import VISIBLE
from vlmtune.errors import ExitCode, VlmtuneError
from vlmtune.signals import all_as_ctrl_c, stopping_signals
from vlmtune.workflow.here import try_here
from vlmtune.workflow.job import Job

if TYPE_CHECKING:
    from vlmtune.engine.oom import OutOfMemory
    from vlmtune.engine.ranks.join import Place
    from vlmtune.runs.folder import RunFolder
    from vlmtune.runs.records import TrainReport

    Outcome = TrainReport | OutOfMemory

LAST_WORDS_S = 3.0
"""When one has ended, the others see it at their next sum, and say so; one that waits for its GPU never does."""


class Try(NamedTuple):
    """What each process is to do."""

    job: Job
    folder: "RunFolder"
    as_json: bool
    resume: bool


class Word(NamedTuple):
    """A process's last word."""

    outcome: "Outcome | None" = None
    error: VlmtuneError | None = None
    interrupted: bool = False
    failure: str = ""
    """A traceback."""


class Process(NamedTuple):
    """One of the processes of a try."""

    process: BaseProcess
    pipe: Connection


def try_on_several(one: Try) -> "Outcome":
    """Start a process for each GPU and return the first one's outcome, or the error of whoever has none.

    Raises:
        VlmtuneError: what one of them raised, or that it was killed.
        KeyboardInterrupt: the run was stopped outside of its steps.
    """
    from vlmtune.engine.ranks.join import Place
    from vlmtune.engine.ranks.single import gpus_there

    size, gpus = one.job.plan.num_gpus, gpus_there() if one.job.plan.device == "cuda" else None
    with tempfile.TemporaryDirectory(prefix="vlmtune-") as meeting:
        file = str(Path(meeting) / "store")
        places = [Place(number, size, gpus[number] if gpus else None, file) for number in range(size)]
        with _started(places) as processes, _signals_to(processes[0].process):
            for _, pipe in processes:
                with suppress(OSError):  # one that is gone already has no last word either
                    pipe.send(one)
            words = _last_words(processes)
    return _outcome(processes, words)


def follow_launcher(told: Callable[[], dict[str, str]]) -> bool:
    """Join the processes that torchrun has started; all but the first do what it says, until it is done.

    Args:
        told: returns what this process's command line asks for; that of all must be the same.

    Returns:
        Whether this process has done its part; the first one goes on as if it were alone.
    """
    from vlmtune.engine.ranks.join import leave, place_of_launcher
    from vlmtune.engine.runtime import prepare_environment

    place = place_of_launcher()
    if place is None:
        return False
    prepare_environment()
    _join(replace(place, told=told()))
    if place.number == 0:
        return False
    outcome = try_launched(None)
    leave()
    if not isinstance(outcome, VlmtuneError):
        raise typer.Exit(ExitCode.INTERRUPTED if outcome.status == "interrupted" else ExitCode.OK)
    raise outcome


def _join(place: "Place") -> None:
    """Join; where the processes are not alike, the first one says it."""
    from vlmtune.engine.ranks import group
    from vlmtune.engine.ranks.join import NotAlike, join

    try:
        join(place)
    except NotAlike:
        if place.number == 0:
            raise
        with suppress(group.LostPeer):
            group.told_by_first(None)  # until it has: torchrun ends all as soon as one has ended
        raise typer.Exit(ExitCode.ERROR) from None


def try_launched(one: Try | None) -> "Outcome":
    """Train as one of torchrun's processes; all but the first are told by it what to do.

    Raises:
        typer.Exit: another process has ended, and has said why.
    """
    from vlmtune.engine.ranks import group

    try:
        one = group.told_by_first(one)
        return try_here(one.job, one.folder, as_json=one.as_json, resume=one.resume)
    except group.LostPeer:
        raise typer.Exit(ExitCode.ERROR) from None


@contextmanager
def _started(places: "list[Place]") -> Iterator[list[Process]]:
    """Start the processes, and leave none behind."""
    from vlmtune.engine.runtime import nccl_as_found

    context = multiprocessing.get_context("spawn")
    processes = []
    try:
        with nccl_as_found():
            for place in places:
                pipe, end = context.Pipe()
                process = context.Process(target=_work, args=(place, end), name=f"vlmtune-{place.number}")
                with _seeing(place.gpu):
                    process.start()
                end.close()
                processes.append(Process(process, pipe))
        yield processes
    finally:
        for process, _ in processes:
            process.kill()
            process.join()


@contextmanager
def _seeing(gpu: str | None) -> Iterator[None]:
    """Let a process that is started see one GPU from its first import on: any library may start CUDA, which then stays.

    Measured on two H100s: both processes, told later, trained on the first.
    """
    before = os.environ.get(VISIBLE)
    if gpu is not None:
        os.environ[VISIBLE] = gpu
    try:
        yield
    finally:
        if gpu is not None:
            os.environ.pop(VISIBLE) if before is None else os.environ.update({VISIBLE: before})


@contextmanager
def _signals_to(process: BaseProcess) -> Iterator[None]:
    """Pass on what stops a run: the process finishes its step and writes a checkpoint."""

    def pass_on(number: int, frame: object) -> None:
        if process.is_alive():
            os.kill(process.pid, number)

    before = {number: signal.signal(number, pass_on) for number in stopping_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_words(processes: list[Process]) -> dict[int, Word]:
    """Wait until all are done, or for a while after one has failed; return what they said."""
    words: dict[int, Word] = {}
    until = None
    while len(words) < len(processes) and (until is None or time.monotonic() < until):
        left = {number: one for number, one in enumerate(processes) if number not in words}
        ready = wait([one.pipe for one in left.values()], None if until is None else max(0.0, until - time.monotonic()))
        for number, one in left.items():
            if one.pipe in ready:
                words[number] = _word(one)
                if until is None and not _is_done(words[number]):
                    until = time.monotonic() + LAST_WORDS_S
    return words


def _word(one: Process) -> Word:
    try:
        return one.pipe.recv()
    except (EOFError, OSError):  # killed
        one.process.join()
        return Word()


def _is_done(word: Word) -> bool:
    return word.outcome is not None and not isinstance(word.outcome, VlmtuneError)


def _outcome(processes: list[Process], words: dict[int, Word]) -> "Outcome":
    """Return the first one's outcome, or what went wrong first: what users can change before anything else."""
    if len(words) == len(processes) and all(map(_is_done, words.values())):
        return words[0].outcome
    for word in words.values():
        if isinstance(word.outcome, VlmtuneError):
            return word.outcome
        if word.error:
            raise word.error
    if any(word.interrupted for word in words.values()):
        raise KeyboardInterrupt
    if killed := [number for number, word in words.items() if word == Word()]:
        code = processes[killed[0]].process.exitcode
        how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
        raise VlmtuneError(
            f"process {killed[0]} of {len(processes)} was ended by {how}; the others were stopped",
            "the system ends processes so where main memory runs out; --resume goes on from the newest checkpoint",
        )
    raise RuntimeError("\n".join(["a process has failed", *(word.failure for word in words.values())]))


def _work(place: "Place", pipe: Connection) -> None:
    """Be one of the processes."""
    # Whoever is spawned would spawn too: processes that read images begin here as in a run on one GPU.
    multiprocessing.set_start_method(None, force=True)
    if hasattr(os, "setsid"):
        os.setsid()  # a terminal's Ctrl-C goes to the one that started this, which passes it on to the first
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pipe.send(_said(place, pipe))
    pipe.close()


def _end_with_parent() -> None:
    """End where whoever started this was killed: it would hold a GPU, and write into a folder that is free."""
    multiprocessing.parent_process().join()
    os._exit(ExitCode.ERROR)


def _said(place: "Place", pipe: Connection) -> Word:
    from vlmtune.engine.ranks.group import LostPeer
    from vlmtune.engine.ranks.join import join, leave
    from vlmtune.engine.runtime import prepare_environment

    try:
        with all_as_ctrl_c():
            prepare_environment()
            one: Try = pipe.recv()  # imports libraries
            join(place)
            outcome: Any = try_here(one.job, one.folder, as_json=one.as_json, resume=one.resume)
            if not isinstance(outcome, VlmtuneError):
                leave()
            return Word(outcome)
    except KeyboardInterrupt:
        return Word(interrupted=True)
    except VlmtuneError as error:
        return Word(error=error)
    except LostPeer as error:
        return Word(failure=str(error))
    except BaseException:  # noqa: BLE001  whatever it is, it is shown by the process that has the terminal
        return Word(failure=traceback.format_exc())
