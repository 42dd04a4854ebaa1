"""A run that is made longer after its end: with a constant learning rate the weights are those of one long run."""

import json
import shutil

from kills import killed_after_step

CONSTANT = ("training.lr_scheduler_type=constant", "training.lora.dropout=0.3")
ONE, TWO = "training.num_epochs=1", "training.num_epochs=2"  # of four steps each


def log_of(project, name):
    """Step, loss and rate of every line; times differ between runs."""
    return [(one.step, one.loss, one.learning_rate) for one in project.run(name).read_log()]


def test_two_epochs_and_one_more_are_three(project, assert_same_weights):
    project.train("long", *CONSTANT, "training.num_epochs=3")
    project.train("short", *CONSTANT, TWO)
    with killed_after_step(10):
        project.train("short", *CONSTANT, "training.num_epochs=3", resume=True)
    assert not project.run("short").report_json.exists(), "it has not finished any more"
    again = project.train("short", *CONSTANT, "training.num_epochs=3", resume=True)
    assert again.code == 0, again.stderr
    assert_same_weights(project.run("long"), project.run("short"))
    assert log_of(project, "long") == log_of(project, "short")
    assert json.loads(project.run("short").report_json.read_text())["steps"] == 12
    done = project.train("short", *CONSTANT, "training.num_epochs=3", resume=True)
    assert "is finished: 12 steps" in done.stdout


def test_where_the_rate_had_decayed_it_goes_on_as_that_of_the_longer_run_and_says_so(project):
    project.train("long", TWO)
    project.train("short", ONE)
    more = project.train("short", TWO, resume=True)
    assert more.code == 0 and "8 steps in place of 4: " in more.stdout and "continuing from checkpoint-4" in more.stdout
    long, short = ([rate for _, _, rate in log_of(project, name)] for name in ("long", "short"))
    assert short[4:] == long[4:] and short[:4] != long[:4]


def test_without_its_checkpoints_it_cannot_be_made_longer(project):
    project.train("short", ONE)
    shutil.rmtree(project.run("short").checkpoints)
    refused = project.train("short", TWO, resume=True)
    assert refused.code == 1 and "its checkpoints are gone" in refused.stderr
    assert "--set model.adapter=runs/short" in refused.stderr and project.run("short").report_json.exists()


def test_a_run_is_not_made_shorter(project):
    project.train("long", TWO)
    refused = project.train("long", ONE, resume=True)
    assert refused.code == 1 and "num_epochs: 2.0 -> 1.0" in refused.stderr
