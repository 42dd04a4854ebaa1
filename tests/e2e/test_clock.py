"""A clock that is set while a run goes on, by days, forwards and backwards: nothing of the run depends on it."""

import json
import time
from itertools import cycle

DAY_S = 86_400
JUMPS_S = (0, 3 * DAY_S, -3 * DAY_S, 400 * DAY_S)
SETTINGS = (
    *("data.cache_features=true", "model.cache_quantized=true", "data.val_path=rows.jsonl", "training.eval_steps=2"),
    *("training.max_steps=4", "training.save_steps=1000"),
)
BY_MINUTES = ("training.save_minutes=0.0001",)


def test_a_run_under_a_clock_that_jumps_is_the_run_without(project, monkeypatch, assert_same_weights, tmp_path):
    assert project.train("straight", *SETTINGS).code == 0
    jumps, real = cycle(JUMPS_S), time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    done = project.train("jumped", *SETTINGS, *BY_MINUTES)
    assert done.code == 0, done.stderr
    assert_same_weights(project.run("straight"), project.run("jumped"))
    checkpoints = {path.name for path in project.run("jumped").checkpoints.iterdir()}
    assert checkpoints == {"checkpoint-3", "checkpoint-4"}, "every step is later than a six-thousandth of a second"
    report = json.loads(project.run("jumped").report_json.read_text())
    assert 0 < report["seconds"] < 60
    again = project.train("again", *SETTINGS)
    assert again.code == 0 and "the base in 4 bits comes from" in again.stdout + again.stderr
    assert_same_weights(project.run("straight"), project.run("again"))


def test_no_checkpoint_is_due_because_the_clock_was_set(project, monkeypatch):
    jumps, real = iter(range(10**6)), time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps) * DAY_S)
    assert (
        project.train("run", "training.max_steps=3", "training.save_steps=1000", "training.save_minutes=600").code == 0
    )
    assert [path.name for path in project.run("run").checkpoints.iterdir()] == ["checkpoint-3"]
