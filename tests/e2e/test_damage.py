"""Damaged files of a run: named, set aside or refused, never loaded, and never the end of what is whole beside them."""

import json
import os
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from vlmtune.engine import checkpoints, trainer
from vlmtune.runs.folder import COMPLETE
from vlmtune.runs.manifest import MANIFEST, damage

from .test_resume import Killed, interrupt_at

SETTINGS = ("training.save_steps=2", "training.save_total_limit=9", "data.val_path=rows.jsonl")
OF_A_CHECKPOINT = (
    *("adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt"),
    "trainer_state.json",
)


COMMANDS = (
    ("evaluate", "runs/run"),
    ("generate", "runs/run", "--prompt", "What colour is it?"),
    ("merge", "runs/run", "--out", "merged"),
)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def become_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def become_link(file: Path) -> None:
    elsewhere = file.parent.parent / f"elsewhere-{file.name}"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "one bit": flip,
    "junk": lambda file: file.write_bytes(os.urandom(max(10, file.stat().st_size))),
    "a folder": become_folder,
    "a link": become_link,
}


@pytest.fixture
def stopped(project, monkeypatch):
    """A run that ended after its fourth step, with checkpoints 2 and 4."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, trainer, "forward_loss", 10)
        with pytest.raises(Killed):
            project.train("run", *SETTINGS)
    folder = project.run("run")
    assert folder.latest_checkpoint().name == "checkpoint-4"
    return folder


def test_damage_to_any_file_of_a_checkpoint_is_seen(stopped, tmp_path):
    checkpoint = stopped.latest_checkpoint()
    names = {path.name for path in checkpoint.iterdir()} - {COMPLETE}
    assert set(json.loads((checkpoint / COMPLETE).read_text())) == names == set(OF_A_CHECKPOINT)
    assert damage(checkpoint, COMPLETE) is None
    for number, (name, harm) in enumerate(product(OF_A_CHECKPOINT, DAMAGES.values())):
        copied = shutil.copytree(checkpoint, tmp_path / str(number) / "checkpoint-4")
        harm(copied / name)
        assert damage(copied, COMPLETE).startswith(f"{name} ")


@pytest.mark.parametrize(
    ("name", "harm"),
    [("optimizer.pt", "deleted"), ("adapter_model.safetensors", "one bit"), ("rng_state.pth", "a folder")],
)
def test_a_run_goes_on_from_the_newest_whole_checkpoint(project, stopped, assert_same_weights, name, harm):
    project.straight(*SETTINGS)
    DAMAGES[harm](stopped.latest_checkpoint() / name)
    resumed = project.train("run", *SETTINGS, resume=True)
    assert resumed.code == 0, resumed.stderr
    assert f"checkpoint-4 is damaged ({name} " in resumed.stdout
    assert "it is called damaged-checkpoint-4 now" in resumed.stdout
    assert "continuing from checkpoint-2" in resumed.stdout
    assert_same_weights(project.run("straight"), stopped)
    assert (stopped.checkpoints / "damaged-checkpoint-4").is_dir()


def test_a_log_that_is_not_what_was_written_is_told(stopped):
    written, notes = stopped.log.read_text(), []
    assert checkpoints.newest_whole(stopped, notes.append).name == "checkpoint-4" and notes == []
    for text in ("", written[: len(written) // 2], written.replace('"loss": 5', '"loss": 4', 1)):
        notes.clear()
        stopped.log.write_text(text)
        assert checkpoints.newest_whole(stopped, notes.append).name == "checkpoint-4"
        assert notes == [f"{stopped.log} is damaged: it is not what was written before checkpoint-4"]


def test_where_every_checkpoint_is_damaged_the_run_begins_anew(project, stopped, assert_same_weights):
    project.straight(*SETTINGS)
    for checkpoint in stopped.checkpoints.iterdir():
        flip(checkpoint / "rng_state.pth")
    resumed = project.train("run", *SETTINGS, resume=True)
    assert resumed.code == 0 and "no checkpoint yet: starting from the beginning" in resumed.stdout
    assert_same_weights(project.run("straight"), stopped)


def test_a_checkpoint_of_0_1_0_has_no_manifest(project, stopped, assert_same_weights):
    project.straight(*SETTINGS)
    for checkpoint in stopped.checkpoints.iterdir():
        (checkpoint / COMPLETE).write_bytes(b"")
    resumed = project.train("run", *SETTINGS, resume=True)
    assert resumed.code == 0 and "continuing from checkpoint-4" in resumed.stdout
    assert_same_weights(project.run("straight"), stopped)


def test_a_damaged_checkpoint_is_not_used_for_answers(project, stopped, run_cli):
    flip(stopped.latest_checkpoint() / "adapter_model.safetensors")
    for command in COMMANDS:
        refused = run_cli(*command)
        assert refused.code == 1
        assert refused.stderr.startswith("error: runs/run/checkpoints/checkpoint-4 is damaged: adapter_model")
    other = run_cli(*COMMANDS[0], "--checkpoint", "2")
    assert other.code == 0, other.stderr


def test_a_damaged_adapter_is_named_and_not_used(project, run_cli):
    project.train("run", "training.max_steps=1", "data.val_path=rows.jsonl")
    folder = project.run("run")
    whole = shutil.copytree(folder.adapter, folder.path.with_name("whole"))
    files = ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json")
    words = ("experiment_name=run", "training.max_steps=1", "data.val_path=rows.jsonl")
    resume = ("train", project.config, "--resume", *(word for one in words for word in ("--set", one)))
    assert run_cli(*resume).stdout.endswith("runs/run is finished: 1 step; nothing to do\n")
    commands = (*COMMANDS, resume)
    for number, (name, harm) in enumerate(product(files, DAMAGES.values())):
        harm(folder.adapter / name)
        refused = run_cli(*commands[number % len(commands)])
        assert refused.code == 1
        assert refused.stderr.startswith(f"error: runs/run/adapter is damaged: {name} "), refused.stderr
        shutil.rmtree(folder.adapter)
        shutil.copytree(whole, folder.adapter)
    assert run_cli(*COMMANDS[0]).code == 0


def test_an_adapter_of_0_1_0_without_its_weights_is_not_looked_for_elsewhere(project, run_cli):
    project.train("run", "training.max_steps=1", "data.val_path=rows.jsonl")
    adapter = project.run("run").adapter
    (adapter / MANIFEST).unlink()
    (adapter / "adapter_model.bin").write_bytes(b"a pickle")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (adapter / name).unlink()
        refused = run_cli(*COMMANDS[0])
        assert refused.code == 1 and "error: runs/run/adapter is damaged: adapter_" in refused.stderr


def test_a_link_among_the_checkpoints_is_left_alone(project, stopped, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.move(stopped.checkpoints / "checkpoint-2", elsewhere)
    (stopped.checkpoints / "checkpoint-2").symlink_to(elsewhere)
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("checkpoint-6", "damaged-checkpoint-4"):
        (stopped.checkpoints / name).symlink_to(outside)
    resumed = project.train("run", *SETTINGS[1:], "training.save_total_limit=1", resume=True)
    assert resumed.code == 0, resumed.stderr
    assert len(list(elsewhere.iterdir())) > 5
    assert list(outside.iterdir()) == []


def test_a_run_folder_that_is_removed_meanwhile_is_one_error(project, monkeypatch):
    real, removed = trainer.forward_loss, []

    def remove_in_step(number):
        def forward_loss(*args):
            removed.append(None)
            if len(removed) == number:
                shutil.rmtree(project.run("run").path)
            return real(*args)

        return forward_loss

    for number, logged, saved in ((4, 1, 100), (4, 100, 2), (14, 100, 100)):  # met by log, checkpoint, result
        removed.clear()
        monkeypatch.setattr(trainer, "forward_loss", remove_in_step(number))
        lost = project.train("run", f"training.save_steps={saved}", f"training.logging_steps={logged}")
        assert lost.code == 1 and lost.stderr.startswith("error: runs/run was removed while the run went on: what it")
        assert not project.run("run").path.exists()


def test_aside_goes_what_is_damaged_twice(stopped):
    notes = []
    for _ in range(2):
        checkpoint = stopped.checkpoints / "checkpoint-9"
        checkpoint.mkdir()
        (checkpoint / "a").write_bytes(b"a")
        checkpoints.finish_checkpoint(checkpoint, keep=9)
        (checkpoint / "a").write_bytes(b"b")
        assert checkpoints.newest_whole(stopped, notes.append).name == "checkpoint-4"
    assert len(notes) == 2 and all("checkpoint-9 is damaged (a is not what was written" in note for note in notes)
