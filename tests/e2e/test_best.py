"""The best checkpoint is the result, a run that gets no better ends, and a kill changes neither."""

import json

import pytest
import torch
from kills import killed_after_step
from safetensors.torch import load_file

from vlmtune.engine import trainer

BEST = (
    "data.val_path=rows.jsonl",
    "training.eval_steps=1",
    "training.save_best_by=loss",
    "training.save_total_limit=1",
)
LOSSES = (3.0, 1.0, 2.0, 2.5, 0.5, 4.0, 5.0, 6.0)  # of steps 1 to 8: the best is that of step 5


@pytest.fixture
def losses(monkeypatch):
    """Evaluations find LOSSES, by their step."""
    real = trainer.TuneTrainer.evaluate

    def evaluate(self, *args, **kwargs):
        monkeypatch.setattr(trainer, "mean_loss", lambda *args: LOSSES[self.state.global_step - 1])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(trainer.TuneTrainer, "evaluate", evaluate)


def report_of(project, name):
    return json.loads(project.run(name).report_json.read_text())


def checkpoints(project, name):
    return sorted(path.name for path in project.run(name).checkpoints.iterdir())


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_the_result_is_the_best_checkpoint(project, losses, weights, method):
    at_5 = ("training.max_steps=5", "training.lr_scheduler_type=constant")
    done = project.train("best", *BEST, f"training.method={method}", "training.lr_scheduler_type=constant")
    assert done.code == 0 and "kept: step 5 with the best evaluation, loss 0.5000" in done.stdout, done.stderr
    project.train("five", f"training.method={method}", *at_5)
    best, five = weights(project.run("best")), weights(project.run("five"))
    assert best.keys() == five.keys() and all(torch.equal(best[name], five[name]) for name in best)
    report = report_of(project, "best")
    assert report["best"] == {"name": "loss", "value": 0.5, "step": 5}
    assert (report["eval_loss"], report["steps"]) == (0.5, 8)
    assert checkpoints(project, "best") == ["checkpoint-5", "checkpoint-8"]


def test_a_run_that_gets_no_better_ends(project, losses):
    done = project.train("early", *BEST, "training.early_stopping_patience=2")
    assert done.code == 0, done.stderr
    assert "stopped at step 4 of 8: 2 evaluations in a row without a better loss; kept: step 2" in done.stdout
    report = report_of(project, "early")
    assert (report["status"], report["steps"], report["best"]["step"]) == ("finished", 4, 2)
    again = project.train("early", *BEST, "training.early_stopping_patience=2", resume=True)
    assert "is finished: 4 steps; nothing to do" in again.stdout


@pytest.mark.parametrize("killed_at", [2, 3, 4])
def test_a_kill_changes_neither_the_best_nor_the_end(project, losses, assert_same_weights, killed_at):
    settings = (*BEST, "training.early_stopping_patience=2", "training.save_steps=1")
    project.train("straight", *settings)
    with killed_after_step(killed_at):
        project.train("killed", *settings)
    assert project.train("killed", *settings, resume=True).code == 0
    assert_same_weights(project.run("straight"), project.run("killed"))
    straight, killed = report_of(project, "straight"), report_of(project, "killed")
    assert (straight["steps"], straight["best"]) == (killed["steps"], killed["best"])


def test_an_evaluation_that_is_made_up_for_is_counted_too(project, losses, monkeypatch):
    """Stopped at step 5, before its evaluation; killed once more when that was made up for."""
    from vlmtune.engine.callbacks import StopOnInterrupt

    real = StopOnInterrupt.on_step_end

    def stop_at_5(self, args, state, control, **kwargs):
        self.stopped = self.stopped or state.global_step == 5
        return real(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StopOnInterrupt, "on_step_end", stop_at_5)
        assert project.train("run", *BEST).code == 130
    with killed_after_step(6):
        project.train("run", *BEST, resume=True)
    assert project.train("run", *BEST, resume=True).code == 0
    assert report_of(project, "run")["best"]["step"] == 5


def test_a_best_checkpoint_that_is_damaged_is_told_of(project, losses, weights):
    with killed_after_step(8):
        project.train("run", *BEST)
    next(project.run("run").checkpoints.glob("checkpoint-5/adapter_model.safetensors")).write_bytes(b"?")
    done = project.train("run", *BEST, resume=True)
    assert done.code == 0 and "checkpoint-5 had the best loss and is damaged" in done.stdout
    assert report_of(project, "run")["best"] is None
    last = load_file(project.run("run").checkpoints / "checkpoint-8" / "adapter_model.safetensors")
    assert all(torch.equal(value, last[name]) for name, value in weights(project.run("run")).items())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ("training.save_best_by=loss", "training.eval_steps=2"),
            "training.eval_steps: nothing to evaluate",
        ),
        (
            ("training.save_best_by=loss", "data.val_path=rows.jsonl"),
            "training.save_best_by: the model is evaluated at the end only",
        ),
        (("training.early_stopping_patience=2",), "nothing is better or worse; set training.save_best_by"),
        (("training.save_best_by=bleu",), "training.save_best_by must be one of loss, exact, contains, cer"),
    ],
)
def test_what_has_nothing_to_compare_is_refused(project, settings, said):
    refused = project.train("bad", *settings)
    assert refused.code == 1 and said in refused.stderr, refused.stderr
