"""Commands on a file system that refuses what Windows refuses."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vlmtune.engine import trainer
from vlmtune.models.to_safetensors import convert
from vlmtune.plan.file import load_plan

SHORT = ("--max-new-tokens", "4", "--json")


class Killed(BaseException):
    """Stands for a kill where no code may run afterwards: nothing catches it."""


def kill_at(patch, number):
    """End the run before the n-th forward pass."""
    real, calls = trainer.forward_loss, iter(range(1, 1000))

    def forward_loss(*args):
        if next(calls) == number:
            raise Killed
        return real(*args)

    patch.setattr(trainer, "forward_loss", forward_loss)


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_a_run_on_another_drive_from_its_first_try_to_its_end(project, windows, monkeypatch, method):
    folder = windows / "runs" / "killed"
    settings = (f"output_dir={folder.parent}", f"training.method={method}", "training.save_steps=1")
    with monkeypatch.context() as patch:
        kill_at(patch, 5)
        with pytest.raises(Killed):
            project.train("killed", *settings, "data.val_path=rows.jsonl")
    resumed = project.train("killed", *settings, "data.val_path=rows.jsonl", resume=True)
    assert resumed.code == 0, resumed.stderr
    assert {path.name for path in folder.rglob("*checkpoint-*")} == {"checkpoint-7", "checkpoint-8"}
    plan = json.loads((folder / "plan.json").read_text())
    assert Path(plan["model"]).is_absolute() and load_plan(folder / "plan.json").model == plan["model"]
    evaluated = project.run_cli("evaluate", folder, *SHORT)
    assert evaluated.code == 0, evaluated.stderr


def test_a_run_is_asked_and_merged(project, windows):
    assert project.train("done", "training.max_steps=1").code == 0
    folder = project.run("done").path
    asked = project.run_cli("generate", folder, "--prompt", "What colour?", *SHORT)
    assert asked.code == 0, asked.stderr
    for _ in range(2):
        merged = project.run_cli("merge", folder, "-o", windows / "merged", "--json")
        assert merged.code == 0, merged.stderr
        for file in (windows / "merged").iterdir():
            file.unlink()


def test_a_pickle_is_converted_anew(llava, windows):
    torch.save(load_file(llava / "model.safetensors"), windows / "pytorch_model.bin")
    assert convert(windows) == convert(windows) == [windows / "model.safetensors"]


def test_a_model_is_checked_in_a_folder_that_cannot_be_removed(llava, windows, run_cli):
    done = run_cli("models", "check", llava, "--json")
    assert done.code == 0 and json.loads(done.stdout)["holds"], done.stderr
