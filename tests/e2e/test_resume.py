"""A resumed run is the uninterrupted run: weights bit for bit, and the same log."""

import json
import os
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kills import Killed, exit_code_of, killed_after_step

from vlmtune.engine import callbacks, checkpoints, trainer
from vlmtune.engine import train as engine_run
from vlmtune.plan.file import load_plan
from vlmtune.runs import manifest
from vlmtune.runs.folder import COMPLETE
from vlmtune.workflow import train as command

STEPS = 8  # of the project's config: two epochs of four steps, a checkpoint every third
DROPOUT = ("training.lora.dropout=0.3",)


def log_of(folder):
    """Step, loss, rate and evaluation of every line; times differ between runs."""
    lines = [json.loads(line) for line in folder.log.read_text().splitlines()]
    return [tuple(line[key] for key in ("step", "epoch", "loss", "learning_rate", "eval_loss")) for line in lines]


def assert_same_log(one, other):
    assert log_of(one) == log_of(other)


def resume_and_die_half_way(project) -> None:
    """Go on with the run, and kill this process while it writes the optimizer's file."""
    real = torch.save

    def die_half_way(value, path, *args, **kwargs):
        if "checkpoint-6" in str(path) and "optimizer" in str(path):
            Path(path).write_bytes(b"PK")
            os.kill(os.getpid(), signal.SIGKILL)
        real(value, path, *args, **kwargs)

    torch.save = die_half_way
    project.train("killed", *DROPOUT, resume=True)


def test_killed_between_and_during_checkpoints(project, assert_same_weights):
    straight = project.train("straight", *DROPOUT)
    assert straight.code == 0, straight.stderr
    assert [step for step, *_ in log_of(project.run("straight"))] == list(range(1, STEPS + 1))

    folder = project.run("killed")
    with killed_after_step(5):
        project.train("killed", *DROPOUT)
    assert folder.latest_checkpoint().name == "checkpoint-3" and log_of(folder)[-1][0] == 5

    assert exit_code_of(lambda: resume_and_die_half_way(project)) == -signal.SIGKILL
    assert folder.latest_checkpoint().name == "checkpoint-3" and (folder.checkpoints / "checkpoint-6").is_dir()

    resumed = project.train("killed", *DROPOUT, resume=True)
    assert resumed.code == 0, resumed.stderr
    assert_same_weights(project.run("straight"), folder)
    assert_same_log(project.run("straight"), folder)


def interrupt_at(monkeypatch, owner, name, calls):
    """Make the n-th call of `owner.name` end the run as a kill does, before it does anything."""
    real, seen = getattr(owner, name), []

    def call(*args, **kwargs):
        seen.append(args)
        if len(seen) == calls:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize(
    ("settings", "killed_in_batch"),
    [
        pytest.param(("training.method=full",), 9, id="full"),
        pytest.param(("training.method=lora", "hardware.mixed_precision=bf16", *DROPOUT), 9, id="lora in bf16"),
        pytest.param(("training.save_steps=4", *DROPOUT), 9, id="from the end of an epoch"),
        pytest.param(("training.save_steps=4", "hardware.num_workers=1", *DROPOUT), 9, id="that, with workers"),
        pytest.param(("training.max_steps=6", "training.save_steps=2"), 7, id="max_steps"),
        pytest.param(
            ("training.batch_size=3", "training.num_epochs=2.5", "training.save_minutes=0.000001"), 5, id="batches"
        ),
        pytest.param(("training.packing=true", "training.pack_tokens=160", *DROPOUT), 7, id="packs"),
        pytest.param(("data.val_path=rows.jsonl", "training.eval_steps=2", *DROPOUT), 9, id="with evaluation"),
    ],
)
def test_resumed_is_uninterrupted(project, monkeypatch, assert_same_weights, settings, killed_in_batch):
    assert project.train("straight", *settings).code == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, trainer, "forward_loss", killed_in_batch)
        with pytest.raises(Killed):
            project.train("killed", *settings)
    assert project.run("killed").latest_checkpoint() is not None
    resumed = project.train("killed", *settings, resume=True)
    assert resumed.code == 0, resumed.stderr
    assert_same_weights(project.run("straight"), project.run("killed"))
    assert_same_log(project.run("straight"), project.run("killed"))


def test_killed_after_the_last_step_trains_no_further_step(project, monkeypatch, assert_same_weights):
    settings = ("training.max_steps=5", "training.save_steps=5")
    project.train("straight", *settings)
    with monkeypatch.context() as patch:
        interrupt_at(patch, engine_run, "save_tuned", 1)
        with pytest.raises(Killed):
            project.train("killed", *settings)
    resumed = project.train("killed", *settings, resume=True)
    assert resumed.code == 0, resumed.stderr
    assert_same_weights(project.run("straight"), project.run("killed"))
    assert_same_log(project.run("straight"), project.run("killed"))


@pytest.mark.parametrize("written", [(), ("plan.json",), ("plan.json", "config.yaml")], ids=str)
def test_killed_while_the_run_folder_is_begun(project, monkeypatch, assert_same_weights, written):
    project.train("straight", "training.max_steps=1")
    folder = project.run("killed")
    with monkeypatch.context() as patch:
        patch.setattr(command, "_unless_trained_removed", lambda *args, **kwargs: nullcontext())
        interrupt_at(patch, Path, "replace", len(written) + 2)  # the first says which process trains here
        with pytest.raises(Killed):
            project.train("killed", "training.max_steps=1")
    assert {path.name for path in folder.path.iterdir()} == set(written)
    (folder.path / "next.json.7.partial").write_text("{")  # a real kill does not tidy up
    again = project.train("killed", "training.max_steps=1")
    if written:
        assert again.code == 1 and "already holds a run\nhint:  continue it with --resume" in again.stderr
        again = project.train("killed", "training.max_steps=1", resume=True)
    assert again.code == 0, again.stderr
    assert_same_weights(project.run("straight"), folder)
    straight = {path.name for path in project.run("straight").path.iterdir()}
    assert {path.name for path in folder.path.iterdir()} == straight
    for name in ("config.yaml", "versions.json"):
        expected = (project.run("straight").path / name).read_text().replace("straight", "killed")
        assert (folder.path / name).read_text() == expected
    assert load_plan(folder.plan) == replace(load_plan(project.run("straight").plan), experiment_name="killed")


@pytest.mark.parametrize("call", ["sync", "remove"])
def test_killed_while_a_checkpoint_is_finished(project, monkeypatch, assert_same_weights, call):
    settings = ("training.save_steps=1", "training.max_steps=3", "training.save_total_limit=1")
    project.straight(*settings)
    with monkeypatch.context() as patch:
        owner, number = {"sync": (manifest, 12), "remove": (checkpoints, 1)}[call]
        interrupt_at(patch, owner, call, number)
        with pytest.raises(Killed):
            project.train("killed", *settings)
    folder = project.run("killed")
    complete = [marker.parent.name for marker in folder.checkpoints.glob(f"*/{COMPLETE}")]
    assert len(complete) == 1 and len(list(folder.checkpoints.iterdir())) == 2
    assert project.train("killed", *settings, resume=True).code == 0
    assert_same_weights(project.run("straight"), folder)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["checkpoint-3"]


def test_without_a_checkpoint_it_starts_from_the_beginning_and_says_so(project, monkeypatch, assert_same_weights):
    project.straight()
    with monkeypatch.context() as patch:
        interrupt_at(patch, trainer, "forward_loss", 4)
        with pytest.raises(Killed):
            project.train("killed")
    resumed = project.train("killed", resume=True)
    assert resumed.code == 0 and "no checkpoint yet: starting from the beginning" in resumed.stdout
    assert_same_weights(project.run("straight"), project.run("killed"))
    assert_same_log(project.run("straight"), project.run("killed"))


def test_the_report_of_a_resumed_run_covers_all_of_it(project, monkeypatch):
    project.straight()
    with monkeypatch.context() as patch:
        interrupt_at(patch, trainer, "forward_loss", 9)
        with pytest.raises(Killed):
            project.train("killed")
    project.train("killed", resume=True)
    straight, resumed = (json.loads(project.run(name).report_json.read_text()) for name in ("straight", "killed"))
    for key in ("steps", "trained_tokens", "train_loss_first", "train_loss_last", "num_rows", "text_tokens"):
        assert resumed[key] == straight[key], key
    lines = [json.loads(line) for line in project.run("killed").log.read_text().splitlines()]
    elapsed = [line["elapsed_s"] for line in lines]
    assert elapsed == sorted(elapsed) and resumed["seconds"] >= elapsed[-1] > elapsed[2]


def kept_totals(checkpoint) -> dict:
    """What a checkpoint keeps of each callback that counts, by the name of its class."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return {name: kept["attributes"]["totals"] for name, kept in state["stateful_callbacks"].items() if "Rec" in name}


def test_a_recorder_of_another_name_goes_on_from_the_checkpoints_of_0_1_0(project, monkeypatch):
    settings = ("training.save_steps=2", "training.save_total_limit=9")
    project.train("straight", *settings)
    for name, killed_in_batch in (("Recorder", 7), ("RunRecorder", 5)):
        with monkeypatch.context() as patch:
            patch.setattr(engine_run, "Recorder", type(name, (callbacks.Recorder,), {}))
            interrupt_at(patch, trainer, "forward_loss", killed_in_batch)
            with pytest.raises(Killed):
                project.train("killed", *settings, resume=name != "Recorder")
    folder = project.run("killed").checkpoints
    monkeypatch.setattr(engine_run, "Recorder", type("RunRecorder", (callbacks.Recorder,), {}))
    assert project.train("killed", *settings, resume=True).code == 0
    for step, name in ((2, "Recorder"), (4, "RunRecorder"), (6, "RunRecorder"), (8, "RunRecorder")):
        straight = kept_totals(project.run("straight").checkpoints / f"checkpoint-{step}")["Recorder"]
        (found,) = kept_totals(folder / f"checkpoint-{step}").items()
        assert (found[0], found[1]["tokens"], found[1]["rows"]) == (name, straight["tokens"], straight["rows"])


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def test_a_finished_run_is_left_as_it_is(project):
    project.train("done", "training.max_steps=1")
    before = snapshot(project.run("done"))
    again = project.train("done", "training.max_steps=1", resume=True)
    assert (again.code, again.stdout) == (0, "runs/done is finished: 1 step; nothing to do\n")
    assert snapshot(project.run("done")) == before
    as_json = project.train("done", "training.max_steps=1", resume=True, flags=("--json",))
    assert json.loads(as_json.stdout) == json.loads(project.run("done").report_json.read_text())


def test_a_changed_run_is_refused_and_nothing_is_lost(project):
    project.train("changed", "training.max_steps=1")
    project.run("changed").report_json.unlink()
    project.write_rows(project.rows[:-1], "other.jsonl")
    before = snapshot(project.run("changed"))
    for change, named in (
        ("training.lora.rank=8", "lora_rank: 4 -> 8"),
        ("training.learning_rate=0.02", "learning_rate: 0.01 -> 0.02"),
        ("data.train_path=other.jsonl", "other.jsonl does not hold the rows that the run began with"),
        ("training.seed=1", "seed: 42 -> 1"),
    ):
        refused = project.train("changed", "training.max_steps=1", change, resume=True)
        assert (
            refused.code == 1 and named in refused.stderr and "runs/changed was started differently" in refused.stderr
        )
    assert snapshot(project.run("changed")) == before


def test_how_often_to_log_and_save_may_change(project, monkeypatch, assert_same_weights):
    project.straight()
    with monkeypatch.context() as patch:
        interrupt_at(patch, trainer, "forward_loss", 9)
        with pytest.raises(Killed):
            project.train("killed")
    changed = ("training.save_steps=2", "training.logging_steps=2", "training.save_total_limit=9")
    assert project.train("killed", *changed, resume=True).code == 0
    assert_same_weights(project.run("straight"), project.run("killed"))
    assert [step for step, *_ in log_of(project.run("killed"))] == [1, 2, 3, 4, 6, 8]
    names = {path.name for path in project.run("killed").checkpoints.iterdir()}
    assert names == {"checkpoint-3", "checkpoint-4", "checkpoint-6", "checkpoint-8"}


def test_an_existing_folder_is_not_overwritten(project):
    project.train("mine", "training.max_steps=1")
    before = snapshot(project.run("mine"))
    refused = project.train("mine", "training.max_steps=1")
    assert refused.code == 1 and "runs/mine already holds a run" in refused.stderr and "--resume" in refused.stderr
    assert snapshot(project.run("mine")) == before


def test_resuming_what_never_began_is_refused(project):
    refused = project.train("never", resume=True)
    assert refused.code == 1 and "there is no run folder runs/never" in refused.stderr


def test_one_command_begins_goes_on_and_has_ended(project, monkeypatch, assert_same_weights):
    settings = ("training.max_steps=2", "training.save_steps=1")
    project.train("straight", *settings)
    refused = project.train("queued", *settings, flags=("--resume", "auto", "--model", str(project.model)))
    assert refused.code == 1 and "and runs/queued has not begun" in refused.stderr
    with monkeypatch.context() as patch:
        interrupt_at(patch, trainer, "forward_loss", 3)
        with pytest.raises(Killed):
            project.train("queued", *settings, flags=("--resume", "auto"))
    goes_on = project.train("queued", *settings, flags=("--resume", "auto"))
    assert goes_on.code == 0 and "continuing from checkpoint-1\n" in goes_on.stdout
    assert_same_weights(project.run("straight"), project.run("queued"))
    ended = project.train("queued", *settings, flags=("--resume=auto",))
    assert (ended.code, ended.stdout) == (0, "runs/queued is finished: 2 steps; nothing to do\n")
    project.run("queued").plan.unlink()
    refused = project.train("queued", *settings, flags=("--resume", "auto"))
    assert refused.code == 1 and "holds no run that can be continued: it has no plan.json" in refused.stderr
