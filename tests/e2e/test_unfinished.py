"""A run that was interrupted can be asked, evaluated and merged as it is; a moved one says how to go on."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import yaml
from tiny import save_tiny

from vlmtune.engine import trainer

CUT = "cut at {} tokens: --max-new-tokens N lets the answer be longer\n"


def stop_at(monkeypatch, project, name, step, *settings):
    """Train until Ctrl-C has come twice in the step after `step`."""

    def training_step(self, *args, **kwargs):
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    real = trainer.TuneTrainer.training_step
    with monkeypatch.context() as patch:
        patch.setattr(trainer.TuneTrainer, "training_step", training_step)
        assert project.train(name, *settings).code == 130
    return project.run(name)


@pytest.fixture
def asked(project):
    """The picture of the first row, asked of what is given; returns code, answer and what was said beside it.

    A model that has learned little does not end its answers; that they are cut is left out.
    """
    picture = project.root / project.rows[0]["image"]

    def ask(*what):
        words = ("--image", picture, "--prompt", project.rows[0]["question"], "--max-new-tokens", "8")
        result = project.run_cli("generate", *what, *words)
        return dataclasses.replace(result, stderr=result.stderr.removesuffix(CUT.format(8)))

    return ask


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_the_newest_checkpoint_is_asked_evaluated_and_merged(project, monkeypatch, asked, method):
    settings = ("training.save_steps=2", "training.learning_rate=0.02", f"training.method={method}")
    folder = stop_at(monkeypatch, project, "half", 5, *settings)
    told = f"{folder.path.relative_to(project.root)} has not finished: checkpoint-4 of 8 steps is used\n"
    path = folder.path.relative_to(project.root)

    answer = asked(path)
    assert (answer.code, answer.stderr) == (0, told)
    evaluated = project.run_cli("evaluate", path, "--data", "rows.jsonl")
    assert (evaluated.code, evaluated.stderr) == (0, told)
    merged = project.run_cli("merge", path, "-o", "merged")
    assert (merged.code, merged.stderr) == (0, told)
    assert asked("merged").stdout == answer.stdout

    earlier = asked(path, "--checkpoint", "2")
    assert (earlier.code, earlier.stderr) == (0, "checkpoint-2 of 8 steps is used\n")
    assert project.train("half", *settings, resume=True).code == 0
    assert asked(path).stderr == ""
    assert asked(path, "--checkpoint", "newest").stderr == "checkpoint-8 of 8 steps is used\n"


def test_a_checkpoint_is_the_run_at_its_step(project, asked):
    """Evaluated with the numbers that the run had there."""
    assert project.train("run", "data.val_path=rows.jsonl", "training.eval_steps=3").code == 0
    shown = project.run_cli("evaluate", "runs/run", "--checkpoint", "checkpoints/checkpoint-6", "--max-new-tokens", "1")
    logged = [record.eval_loss for record in project.run("run").read_log() if record.step == 6][-1]
    assert f"evaluation loss  {logged:.4f}\n" in shown.stdout


@pytest.mark.parametrize(
    ("flags", "said", "hint"),
    [
        (("--checkpoint", "7"), "--checkpoint 7: there is no such checkpoint", "those are: 6, 8, newest"),
        (("--checkpoint", "last"), "--checkpoint last: there is no such checkpoint", "those are: 6, 8, newest"),
    ],
)
def test_a_checkpoint_that_is_not_there(project, asked, flags, said, hint):
    project.train("run")
    refused = asked("runs/run", *flags)
    assert refused.code == 1 and said in refused.stderr and hint in refused.stderr


def test_a_run_without_a_checkpoint_has_learned_nothing(project, monkeypatch, asked):
    stop_at(monkeypatch, project, "begun", 2)
    refused = asked("runs/begun")
    assert (
        refused.code == 1 and "runs/begun has no checkpoint and no adapter: nothing was learned yet" in refused.stderr
    )
    assert "vlmtune train runs/begun/config.yaml --resume" in refused.stderr
    assert project.run_cli("train", "runs/begun/config.yaml", "--resume").code == 0


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "runs/run", "--base", "--checkpoint", "6"),
        ("generate", "merged", "--prompt", "?", "--checkpoint", "6"),
        ("generate", "merged", "--prompt", "?", "--model", "model"),
        ("train", "run.yaml", "--model", "model"),
    ],
)
def test_flags_that_mean_nothing_together_are_refused(project, words):
    shutil.copytree(project.model, project.root / "merged")
    assert project.run_cli(*words).code == 2


def test_merged_files_can_be_read_by_whoever_reads_their_siblings(project):
    project.train("run")
    shown = project.run_cli("merge", "runs/run", "-o", "my model")
    assert shown.stdout.endswith("try it: vlmtune generate 'my model' --image IMAGE --prompt \"QUESTION\"\n")
    for folder in (project.root / "my model", project.run("run").adapter, project.run("run").latest_checkpoint()):
        modes = {path.stat().st_mode & 0o777 for path in folder.iterdir()}
        assert len(modes) == 1, f"{folder}: {[oct(mode) for mode in modes]}"
    asked = project.run_cli("generate", "my model", "--prompt", "?", "--image", project.rows[0]["image"])
    assert asked.code == 0 and asked.stderr in ("", CUT.format(256))


def test_a_merged_model_shrinks_images_as_the_run_did(project, monkeypatch):
    from vlmtune.data import dataset

    sizes = []
    real = dataset.open_image
    monkeypatch.setattr(dataset, "open_image", lambda ref, side: sizes.append(side) or real(ref, side))
    for method, made in (("qlora", "merged"), ("full", "runs/full/model")):
        project.train(method, "data.image_size=28", f"training.method={method}", "training.max_steps=1")
        if method == "qlora":
            project.run_cli("merge", "runs/qlora", "-o", made)
        sizes.clear()
        assert project.run_cli("generate", made, "--prompt", "?", "--image", project.rows[0]["image"]).code == 0
        assert sizes == [28]


@pytest.fixture
def moved(project):
    """A finished run whose base model is somewhere else now."""
    shutil.copytree(project.model, project.root / "base")
    assert project.train("run", "model.name=base", "data.val_path=rows.jsonl", "training.max_steps=2").code == 0
    (project.root / "base").rename(project.root / "base-elsewhere")
    return project


def test_a_moved_base_is_named_as_the_likely_cause_and_may_be_given(moved, asked):
    for command in (("evaluate", "runs/run"), ("merge", "runs/run", "-o", "merged")):
        refused = moved.run_cli(*command)
        assert refused.code == 1, command
        assert f"the base model of runs/run is not there: {moved.root / 'base'}\n" in refused.stderr
        assert "was moved: say where the model is now, --model DIR" in refused.stderr
        assert moved.run_cli(*command, "--model", "base-elsewhere").code == 0
    assert asked("runs/run").code == 1 and asked("runs/run", "--model", "base-elsewhere").code == 0


def test_a_moved_run_finds_a_base_beside_the_user_and_asks_for_its_rows(moved):
    (moved.root / "base-elsewhere").rename(moved.root / "base")
    (moved.root / "far" / "away").mkdir(parents=True)
    (moved.root / "runs" / "run").rename(moved.root / "far" / "away" / "run")
    assert "--model base\n" in moved.run_cli("generate", "far/away/run", "--prompt", "?").stderr
    refused = moved.run_cli("evaluate", "far/away/run", "--model", "base")
    assert "the run folder or the rows were moved: say where they are now, --data FILE" in refused.stderr
    assert moved.run_cli("evaluate", "far/away/run", "--model", "base", "--data", "rows.jsonl").code == 0


def test_a_moved_base_does_not_end_a_run(project, monkeypatch, assert_same_weights):
    shutil.copytree(project.model, project.root / "base")
    project.train("straight", "model.name=base")
    stop_at(monkeypatch, project, "half", 5, "model.name=base")
    (project.root / "base").rename(project.root / "elsewhere")
    refused = project.train("half", "model.name=base", resume=True)
    assert refused.code == 1 and "say where the model is now, --model DIR" in refused.stderr
    assert project.train("half", "model.name=base", resume=True, flags=("--model", "elsewhere")).code == 0
    assert_same_weights(project.run("straight"), project.run("half"))
    assert project.run_cli("generate", "runs/half", "--prompt", "?").code == 0, "the folder knows where it is now"


def test_another_model_is_no_base(moved, asked):
    save_tiny("smolvlm", moved.root / "smol")
    refused = asked("runs/run", "--model", "smol")
    assert refused.code == 1 and "it is smolvlm, and the run was trained on llava\nhint:  it was trained on base" in (
        refused.stderr
    )
    save_tiny("llava", moved.root / "wide", layers=0)
    refused = asked("runs/run", "--model", "wide")
    assert refused.code == 1 and "was trained on another model: its model.language_model.layers.0." in refused.stderr
    assert asked("runs/run", "--model", "nowhere").code == 1


def test_the_config_of_a_run_folder_continues_it_wherever_it_is(project, monkeypatch, assert_same_weights):
    project.straight()
    stop_at(monkeypatch, project, "half", 5)
    assert project.run_cli("train", "runs/half/config.yaml", "--resume").code == 0
    assert_same_weights(project.run("straight"), project.run("half"))

    stop_at(monkeypatch, project, "other", 5)
    project.run("other").path.rename(project.root / "runs" / "renamed")
    assert project.run_cli("train", "runs/renamed/config.yaml", "--resume").code == 0
    assert_same_weights(project.run("straight"), project.run("renamed"))
    assert not project.run("other").path.exists()
    begun = project.run_cli("train", "runs/half/config.yaml")
    assert begun.code == 1 and "already holds a run" in begun.stderr


def test_an_output_folder_in_the_home(project, monkeypatch):
    monkeypatch.setenv("HOME", str(project.root / "home"))
    monkeypatch.setenv("USERPROFILE", str(project.root / "home"))
    assert project.train("run", "output_dir=~/kept", "training.max_steps=1").code == 0
    assert (project.root / "home" / "kept" / "run" / "adapter").is_dir() and not Path("~").exists()
    assert yaml.safe_load((project.root / "home/kept/run/config.yaml").read_text())["output_dir"] == "~/kept"


@pytest.mark.parametrize("inside", ["", "adapter", "checkpoints/checkpoint-2"])
def test_a_run_is_no_model_to_train(project, inside):
    project.train("run", "training.max_steps=2")
    refused = project.train("again", f"model.name=runs/run/{inside}")
    assert refused.code == 1 and "a run folder, not a model" in refused.stderr
    assert f"vlmtune merge {project.root / 'runs' / 'run'} -o MERGED" in refused.stderr


@pytest.mark.parametrize(
    ("base", "told"),
    [
        ("tiny-model", "trained on tiny-model, a folder where it was trained\n"),
        ("/home/someone/tiny-model", "trained on /home/someone/tiny-model, a folder where it was trained\n"),
        ("org/model", "trained on org/model\n"),
        ("model-here", "trained on model-here\n"),
        (None, "trained on an unknown model\n"),
    ],
)
def test_an_adapter_alone_says_what_its_base_is(project, base, told):
    (project.root / "adapter").mkdir()
    (project.root / "model-here").mkdir()
    config = json.dumps({"peft_type": "LORA", "base_model_name_or_path": base})
    (project.root / "adapter" / "adapter_config.json").write_text(config)
    refused = project.train("run", "model.name=adapter")
    assert refused.code == 1 and "adapter is an adapter, not a model" in refused.stderr and told in refused.stderr
    for command in (("generate", "adapter", "--prompt", "?"), ("merge", "adapter", "-o", "merged")):
        refused = project.run_cli(*command)
        assert "adapter is an adapter without its run folder" in refused.stderr and told in refused.stderr


def test_what_lies_in_a_run_folder_points_to_it(project):
    project.train("run", "training.max_steps=1")
    for inside in ("adapter", "checkpoints/checkpoint-1"):
        refused = project.run_cli("generate", f"runs/run/{inside}", "--prompt", "?")
        assert f"is inside of a run folder\nhint:  give that: {project.root / 'runs' / 'run'}\n" in refused.stderr
