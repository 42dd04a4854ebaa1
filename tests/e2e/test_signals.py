"""What others do to a run: a scheduler stops it, a terminal is closed, a pipe has no reader, a second run starts."""

import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import NamedTuple

import pytest
from torch.utils.data import get_worker_info

from vlmtune.data import dataset, workers
from vlmtune.data.features import encode
from vlmtune.engine import train as engine_train
from vlmtune.engine import trainer
from vlmtune.hub import source
from vlmtune.runs.folder import RunFolder
from vlmtune.signals import stopping_signals

from .test_interruptions import call_at, status

STOPPED = "stopping after this step with a checkpoint"


@pytest.fixture(autouse=True)
def signals_reach_us():
    """A shell starts background jobs with Ctrl-C ignored, `nohup` with SIGHUP."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    """As schedulers and terminals do: the processes that read images get it too."""
    for child in multiprocessing.active_children():
        os.kill(child.pid, number)
    signal.raise_signal(number)


@pytest.mark.parametrize("settings", [(), ("hardware.num_workers=2",)], ids=["alone", "with workers"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_stopped_leaves_a_checkpoint(project, monkeypatch, assert_same_weights, number, settings):
    project.straight(*settings)
    with monkeypatch.context() as patch:
        call_at(patch, trainer, "forward_loss", 9, lambda: (send(number), send(number)))
        stopped = project.train("stopped", *settings)
    assert stopped.code == 130 and stopped.stderr == ""
    assert stopped.stdout.count(f"{number.name}: {STOPPED}") == 1
    assert "checkpoint-5 is written; continue with --resume" in stopped.stdout
    assert status(project.run("stopped")) == "interrupted"
    assert project.train("stopped", *settings, resume=True).code == 0
    assert_same_weights(project.run("straight"), project.run("stopped"))
    assert signal.getsignal(number) is signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_stopped_while_the_model_loads_leaves_nothing(project, monkeypatch, number):
    call_at(monkeypatch, engine_train, "build_model", 1, lambda: send(number))
    stopped = project.train("stopped")
    assert (stopped.code, stopped.stderr) == (130, "stopped: there is no checkpoint yet\n")
    assert not project.run("stopped").path.exists()


@pytest.mark.parametrize(("owner", "name"), [(source, "open_model"), (engine_train, "build_model")])
def test_ctrl_c_that_a_library_throws_away_ends_the_run_before_its_first_step(project, monkeypatch, owner, name):
    """As pydantic does where it calls Python back: "Exception ignored in"."""

    def thrown_away() -> None:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    call_at(monkeypatch, owner, name, 1, thrown_away)
    stopped = project.train("stopped")
    assert (stopped.code, stopped.stderr) == (130, "stopped: there is no checkpoint yet\n")
    assert not project.run("stopped").path.exists()


def test_a_run_under_nohup_goes_on(project, monkeypatch):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert signal.SIGHUP not in stopping_signals()
    call_at(monkeypatch, trainer, "forward_loss", 9, lambda: send(signal.SIGHUP))
    assert project.train("goes-on").code == 0


def test_a_run_whose_output_nobody_reads_stops_with_a_checkpoint(project):
    steps = ("training.max_steps=400", "training.logging_steps=1", "training.num_epochs=200")
    words = [str(word) for word in project._arguments("piped", steps, resume=False)]
    run = subprocess.Popen(
        [sys.executable, "-m", "vlmtune", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not run.stdout.readline().startswith("step 1/"):
        assert run.poll() is None
    run.stdout.close()
    stderr = run.stderr.read()
    assert run.wait(timeout=120) == 130
    assert stderr.endswith("nobody reads the output any more: stopping as after Ctrl-C\n")
    folder = project.run("piped")
    assert status(folder) == "interrupted" and folder.latest_checkpoint() is not None


HOLD = """
import sys, time
from pathlib import Path
from vlmtune.hub import source
from vlmtune.runs.folder import RunFolder
from vlmtune.runs.lock import locked
with locked(RunFolder(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold():
    """A function that has another process train in a folder, as far as others can see."""
    started = []

    def start(folder: RunFolder) -> subprocess.Popen:
        other = subprocess.Popen([sys.executable, "-c", HOLD, str(folder.path)], stdout=subprocess.PIPE, text=True)
        started.append(other)
        assert other.stdout.readline() == "held\n"
        return other

    yield start
    for other in started:
        other.kill()
        other.wait()


def test_two_processes_do_not_train_in_one_folder(project, hold, monkeypatch):
    with monkeypatch.context() as patch:
        call_at(patch, trainer, "forward_loss", 9, lambda: send(signal.SIGTERM))
        project.train("shared")
    folder = project.run("shared")
    before = {path: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}
    other = hold(folder)
    refused = project.train("shared", resume=True)
    assert refused.code == 1
    assert f"error: runs/shared is being trained by process {other.pid} on " in refused.stderr
    assert {path: path.read_bytes() for path in before} == before
    other.kill()
    other.wait()
    assert folder.holder.exists(), "a kill leaves it"
    assert project.train("shared", resume=True).code == 0
    assert not folder.holder.exists() and not folder.lock.exists()


def test_a_new_run_leaves_the_folder_to_who_was_first(project, hold):
    folder = RunFolder.create(project.run("first").path)
    other = hold(folder)
    refused = project.train("first")
    assert refused.code == 1 and f"is being trained by process {other.pid}" in refused.stderr
    assert folder.path.exists()


class Usage(NamedTuple):
    """As `shutil.disk_usage` returns it."""

    free: int


@pytest.mark.parametrize(
    ("wanted", "batch_bytes", "held", "fitting"),
    [(2, 10**6, 0, 2), (4, 10**7, 0, 3), (2, 10**7, 4, 1), (2, 2 * 10**7, 2, 0), (8, 10**9, 0, 0), (0, 10**9, 0, 0)],
)
def test_workers_that_shared_memory_has_no_room_for_are_not_started(
    monkeypatch, tmp_path, wanted, batch_bytes, held, fitting
):
    monkeypatch.setattr(workers, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: Usage(64_000_000))
    notes = []
    assert workers.fitting_workers(wanted, batch_bytes, notes.append, held) == fitting
    assert len(notes) == (fitting < wanted)
    said = f"hardware.num_workers is {fitting} here, not {wanted}"
    assert all("64 MB free" in note and said in note for note in notes)


@pytest.mark.parametrize("cached", ["true", "false"])
def test_a_picture_that_ends_its_decoder_is_named(project, monkeypatch, cached):
    real, bad = dataset.open_image, project.root / project.rows[4]["image"]

    def open_or_die(ref, side):
        if ref.path == str(bad) and get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
        return real(ref, side)

    for module in (dataset, encode):
        monkeypatch.setattr(module, "open_image", open_or_die)
    ended = project.train("run", "hardware.num_workers=2", f"data.cache_features={cached}")
    where = bad if cached == "true" else "rows.jsonl:5"
    assert ended.code == 1 and f"that reads images is killed by signal: Killed, at {where}: the" in ended.stderr
    assert not multiprocessing.active_children()


def test_a_run_in_a_small_container_trains(project, monkeypatch, tmp_path):
    monkeypatch.setattr(workers, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: Usage(1000))
    trained = project.train("small", "hardware.num_workers=2", "training.max_steps=1")
    assert trained.code == 0 and "hardware.num_workers is 0 here, not 2" in trained.stdout
    assert not multiprocessing.active_children()
