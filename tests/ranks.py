"""Runs in several processes, started once: importing the libraries takes longer than all that they do."""

import multiprocessing
import os
import shutil
import signal
import traceback
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from vlmtune.engine import trainer
from vlmtune.engine.ranks import group
from vlmtune.engine.ranks.join import Place, join, leave
from vlmtune.runs.folder import RunFolder
from vlmtune.workflow.attempts import keep_job
from vlmtune.workflow.here import try_here
from vlmtune.workflow.job import Job, prepare


class Scene(NamedTuple):
    """One run."""

    job: Job
    name: str
    size: int = 2
    """Processes."""
    begun: str | None = None
    """Goes on from the checkpoint of the second step of the run of this name."""
    stop_at: int | None = None
    """The first process gets Ctrl-C in this forward pass of its own."""


def job_of(config: Path, size: int, *words: str) -> Job:
    """Return a run on so many GPUs, on a machine that has three, and computes on its CPU."""
    from vlmtune.engine import runtime

    real = runtime.probe_device
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "probe_device", lambda: replace(real(), num_gpus=3))
        return prepare(config, (*words, f"hardware.num_gpus={size}"), resume=None, err=True)


def play(scenes: list[Scene], folder: Path) -> None:
    """Run the scenes one after the other; each leaves a run folder in `folder`."""
    size = max(scene.size for scene in scenes)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_be, args=(number, scenes, folder)) for number in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * size, (folder / "error").read_text()


def _be(number: int, scenes: list[Scene], folder: Path) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    multiprocessing.set_start_method(None, force=True)  # as in the processes of a run
    try:
        for size in sorted({scene.size for scene in scenes}):
            if number < size:
                join(Place(number, size, None, str(folder / f"store-{size}")))
                for scene in scenes:
                    if scene.size == size:
                        one(scene, folder)
                leave()
    except BaseException:
        with (folder / "error").open("a") as file:
            file.write(f"process {number}: {traceback.format_exc()}\n")
        raise


def one(scene: Scene, folder: Path) -> str:
    """Run a scene in this process, or this process's part of it; return how it ended."""
    run = RunFolder(folder / scene.name)
    with group.first_alone():
        if group.is_first():
            _set(scene, run, folder)
    with pytest.MonkeyPatch.context() as patch:
        if scene.stop_at and group.is_first():
            patch.setattr(trainer, "forward_loss", _interrupted(trainer.forward_loss, scene.stop_at))
        return try_here(scene.job, run, as_json=True, resume=scene.begun is not None).status


def _set(scene: Scene, run: RunFolder, folder: Path) -> None:
    if scene.begun is None:
        run.path.mkdir()
        keep_job(scene.job, run)
        return
    shutil.copytree(folder / scene.begun, run.path)
    for later in _later(run):
        shutil.rmtree(later)


def _later(run: RunFolder) -> Iterable[Path]:
    return [one for one in run.checkpoints.glob("checkpoint-*") if one.name != "checkpoint-2"]


def _interrupted(real: Callable, at: int) -> Callable:
    calls = []

    def forward(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **kwargs)

    return forward
