"""Metrics of held-out answers while a run trains: in log, view and report, without touching what it learns."""

import json

SETTINGS = (
    "data.val_path=val.jsonl",
    "training.max_steps=4",
    "training.eval_steps=2",
    "evaluation.metrics=[cer, exact]",
)


def test_a_run_answers_as_it_learns_and_learns_the_same(project, assert_same_weights):
    project.write_rows(project.rows[:3], "val.jsonl")
    plain = project.train("plain", *SETTINGS, "training.lora.dropout=0.1")
    done = project.train("run", *SETTINGS, "training.lora.dropout=0.1", "evaluation.generate_rows=2")
    assert plain.code == done.code == 0, done.stderr
    assert_same_weights(project.run("plain"), project.run("run"))
    logged = {record.step: record.eval_metrics for record in project.run("run").read_log() if record.eval_metrics}
    assert logged.keys() == {2, 4} and logged[4].keys() == {"cer", "exact"}
    assert all(record.eval_metrics is None for record in project.run("plain").read_log())
    report = json.loads(project.run("run").report_json.read_text())
    assert report["eval_metrics"] == logged[4]
    assert f"cer {logged[4]['cer']:.1%}" in done.stdout and "answering rows: 0 of 2" in done.stdout
    page = project.run("run").report_html.read_text()
    assert "cer of held-out answers" in page and f"{logged[4]['cer']:.1%}" in page
    again = project.train("run", *SETTINGS, "training.lora.dropout=0.1", "evaluation.generate_rows=1", resume=True)
    assert again.code == 0, "what is asked at evaluations decides nothing"


def test_without_what_a_metric_needs_or_suits_no_run_begins(project, monkeypatch):
    project.write_rows(project.rows[:3], "val.jsonl")
    for command in (["train", "--dry-run"], ["validate"]):
        words = [word for one in (*SETTINGS, "evaluation.metrics=[iou]") for word in ("--set", one)]
        refused = project.run_cli(command[0], project.config, *command[1:], *words)
        assert (
            refused.code == 1 and "iou on 3 rows of 3, val.jsonl:1: the expected answer holds no box" in refused.stderr
        )
    monkeypatch.setattr("vlmtune.metrics.table.find_spec", lambda name: None)
    refused = project.train("run", *SETTINGS, "evaluation.generate_rows=2")
    assert refused.code == 1 and "pip install 'vlmtune[metrics]'" in refused.stderr
    assert not project.run("run").path.exists()
    assert project.train("run", *SETTINGS, "training.max_steps=1").code == 0, "no answer is asked for in training"


def test_answers_need_held_out_rows(project):
    refused = project.train("run", "evaluation.generate_rows=2")
    assert "evaluation.generate_rows: nothing to answer without data.val_path or data.val_fraction" in refused.stderr
