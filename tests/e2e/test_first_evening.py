"""A preset, a few own pictures and nothing else: the run is long enough to learn, and says so."""

import pytest
import torch
from kills import killed_after_step

from vlmtune.data import samples
from vlmtune.plan import length


@pytest.fixture
def first(project):
    """The project with what a first config has: a preset, the model, the rows."""
    project.write_config({"preset": "8gb", "model": {"name": str(project.model)}, "data": {"train_path": "rows.jsonl"}})
    return project


def test_a_few_pictures_and_a_preset_teach_the_adapters(first, weights):
    first.write_rows(first.rows[:5])
    shown = first.train("evening")
    assert shown.code == 0, shown.stderr
    told = "100 steps of 4 rows: 50 epochs over 5 rows (chosen: "
    assert told in shown.stdout
    log = first.run("evening").read_log()
    assert [len(log), log[-1].total_steps] == [100, 100]
    assert all(record.learning_rate > 0 for record in log)
    assert log[0].loss > log[-1].loss + 0.3
    assert all(tensor.abs().max() > 0 for name, tensor in weights(first.run("evening")).items() if "lora_B" in name)
    assert told in (first.run("evening").path / "report.html").read_text(encoding="utf-8")


def test_the_learning_rate_rises_from_the_first_step_on_and_is_above_zero_at_the_last(project):
    settings = ("training.warmup_ratio=0.5", "training.learning_rate=1e-3", "training.max_steps=8")
    project.train("cosine", *settings)
    rates = [record.learning_rate for record in project.run("cosine").read_log()]
    assert rates[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert rates[3] == max(rates) and rates[3:] == sorted(rates[3:], reverse=True) and rates[-1] > 0


def test_a_short_run_is_warned_of_before_the_model_loads(first):
    shown = first.run_cli("train", first.config, "--dry-run", "--set", "training.max_steps=3")
    assert "warning: 3 steps teach little" in shown.stdout
    checked = first.run_cli("validate", first.config, "--set", "training.num_epochs=1")
    assert "warning: 2 steps teach little" in checked.stdout


SHARED = "rows in data.val_path are trained on too"


@pytest.mark.parametrize(
    ("held_out", "told"),
    [
        (lambda rows: rows, "warning: 7 of 7 rows"),
        (lambda rows: rows[::-1], "warning: 7 of 7 rows"),
        (lambda rows: [*rows[:2], rows[2] | {"answer": "pink"}], "warning: 2 of 3 rows"),
        (lambda rows: [row | {"answer": "pink"} for row in rows], None),
    ],
    ids=["a copy", "in another order", "some", "none"],
)
def test_rows_that_are_evaluated_and_trained_on_are_warned_of(first, held_out, told):
    first.write_rows(held_out(first.rows), "held-out.jsonl")
    settings = ("--set", "data.val_path=held-out.jsonl")
    for command in (("train", first.config, "--dry-run"), ("validate", first.config)):
        shown = first.run_cli(*command, *settings)
        assert (shown.code, shown.stderr) == (0, "")
        assert (f"{told} {SHARED[5:]}" in shown.stdout) if told else (SHARED not in shown.stdout)


def test_a_large_file_that_is_evaluated_on_itself_is_warned_of(first, monkeypatch):
    monkeypatch.setattr(samples, "LARGE_BYTES", 1)
    first.write_rows(first.rows, "copy.jsonl")
    shown = first.run_cli("validate", first.config, "--set", "data.val_path=copy.jsonl")
    assert f"warning: 7 of 7 {SHARED}" in shown.stdout


@pytest.mark.parametrize("large", [False, True])
def test_rows_that_max_samples_leaves_out_are_not_counted(first, large, monkeypatch):
    if large:
        monkeypatch.setattr(samples, "LARGE_BYTES", 1)
    first.write_rows(first.rows, "copy.jsonl")
    settings = ("--set", "data.val_path=copy.jsonl", "--set", "data.max_samples=2")
    assert f"warning: 2 of 7 {SHARED}" in first.run_cli("validate", first.config, *settings).stdout


def test_a_run_that_taught_nothing_does_not_end_as_finished(project, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)
    shown = project.train("still", "training.optim=adamw", "training.max_steps=3")
    assert shown.code == 1 and "nothing was learned: after 3 steps" in shown.stderr
    assert not project.run("still").adapter.exists()


def test_a_run_whose_length_was_chosen_goes_on_as_it_began(first, monkeypatch):
    """Even when another version of vlmtune would choose another."""
    with monkeypatch.context() as patch, killed_after_step(5):
        patch.setattr(length, "ENOUGH_STEPS", 8)
        first.train("parted", "training.save_steps=4")
    assert first.run("parted").read_log()[0].total_steps == 8
    resumed = first.train("parted", "training.save_steps=4", resume=True)
    assert resumed.code == 0, resumed.stderr
    assert first.run("parted").read_log()[-1].step == 8
