"""`vlmtune predict`, and `evaluate` with metrics and --compare, on one run."""

import json
import shutil

import pytest

from vlmtune.runs.folder import read_json
from vlmtune.runs.records import EvaluationRecord
from vlmtune.workflow.asked import prediction

SHORT = ("--max-new-tokens", "4")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept") / "runs"


@pytest.fixture
def trained(project, kept):
    """A project with a run of eight steps, trained once."""
    rows = [row | {"answers": [row["answer"], "another"]} for row in project.rows[:3]]
    project.write_rows(rows, "val.jsonl")
    if not kept.exists():
        done = project.train("run", "data.val_path=val.jsonl", "evaluation.metrics=[cer, exact]")
        assert done.code == 0, done.stderr
        shutil.copytree("runs", kept)
    shutil.copytree(kept, "runs", dirs_exist_ok=True)
    return project


def lines_of(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_rows_and_pictures_are_answered_a_line_each(trained, monkeypatch):
    monkeypatch.setattr(prediction, "ROWS_HELD", 2)
    asked = [{"image": row["image"], "question": row["question"]} for row in trained.rows[:3]]
    trained.write_rows(
        [*asked, {"image": "gone.png", "question": "What?"}, {"image": "red0.png"}, asked[0]], "ask.jsonl"
    )
    done = trained.run_cli("predict", "runs/run", "ask.jsonl", *SHORT)
    answered = lines_of(done.stdout)
    assert done.code == 0 and [row["where"] for row in answered] == [f"ask.jsonl:{number}" for number in (1, 2, 3, 6)]
    assert answered[0].keys() == {"where", "images", "question", "answer", "thought", "cut"}
    assert answered[0]["answer"] == answered[3]["answer"]
    alone = trained.run_cli("generate", "runs/run", "--image", "red0.png", "--prompt", asked[0]["question"], *SHORT)
    assert alone.stdout == answered[0]["answer"] + "\n"
    assert "left out: ask.jsonl:4: image" in done.stderr and "gone.png does not exist" in done.stderr
    assert "left out: ask.jsonl:5: the row has no question (--prompt TEXT asks all such rows)" in done.stderr
    assert "4 rows answered, 2 left out" in done.stderr
    words = ("predict", "runs/run", trained.root, "--prompt", "What?", *SHORT, "-o", "out.jsonl", "--json")
    done = json.loads(trained.run_cli(*words).stdout)
    assert done == {"answered": 7, "left_out": 0, "bad_rows": [], "out": "out.jsonl"}
    assert len(lines_of((trained.root / "out.jsonl").read_text())) == 7


def test_the_question_of_the_run_is_asked_of_pictures(trained):
    config = trained.run("run").config
    written = config.read_text()
    config.write_text(written.replace("  prompt: null\n", "  prompt: What colour?\n"))
    done = trained.run_cli("predict", "runs/run", "red0.png", *SHORT)
    config.write_text(written)
    assert done.code == 0 and [row["question"] for row in lines_of(done.stdout)] == ["What colour?"], done.stderr


def test_a_table_is_answered_as_the_rows_of_the_run_are_read(trained):
    table = trained.root / "new" / "ask.csv"
    table.parent.mkdir()
    table.write_text("image,frage\nred0.png,What?\nred0.png,\nred0.png, \n")
    config = trained.run("run").config
    written = config.read_text()
    folder = f"  image_dir: {trained.root}\n"
    changed = written.replace("  columns: {}\n", "  columns: {frage: question}\n")
    config.write_text(changed.replace("  image_dir: null\n", folder))
    done = trained.run_cli("predict", "runs/run", table, *SHORT)
    config.write_text(written)
    assert done.code == 0 and [row["where"] for row in lines_of(done.stdout)] == ["ask.csv row 1"], done.stderr
    assert done.stderr.count("the row has no question") == 2


def test_what_cannot_be_predicted_is_one_error(trained):
    (trained.root / "empty").mkdir()
    (trained.root / "taken.jsonl").write_text("mine")
    (trained.root / "rows.xml").write_text("<rows/>")
    (trained.root / "blank.csv").write_text("image,question\n")
    for words, code, said in (
        ((trained.root,), 2, "pictures alone ask nothing"),
        (("empty", "--prompt", "?"), 1, "the folder empty holds no rows: no .jsonl"),
        (("val.jsonl", "--prompt", " "), 2, "it says nothing: write the question"),
        (("rows.xml",), 1, "rows.xml is none of .jsonl, .json, .parquet, .csv, .tsv or .tar"),
        (("blank.csv",), 1, "blank.csv holds no rows"),
        (("gone.jsonl",), 1, "data file gone.jsonl does not exist"),
        (("val.jsonl", "-o", "taken.jsonl"), 1, "taken.jsonl exists already"),
        (("val.jsonl", "-o", "no/folder.jsonl"), 1, "no/folder.jsonl cannot be written: No such file or directory"),
    ):
        refused = trained.run_cli("predict", "runs/run", *words)
        assert refused.code == code and said in refused.stderr and refused.stdout == ""
    trained.write_rows([{"image": "gone.png", "question": "?"}], "bad.jsonl")
    refused = trained.run_cli("predict", "runs/run", "bad.jsonl", "-o", "none.jsonl")
    assert refused.code == 1 and "no row could be answered, 1 left out" in refused.stderr
    assert not (trained.root / "none.jsonl").exists()
    refused = trained.run_cli("predict", "runs/run", "bad.jsonl", "-o", "taken.jsonl", "--force")
    assert refused.code == 1 and (trained.root / "taken.jsonl").read_text() == "mine", "no answer takes its place"
    asked = (trained.root / "val.jsonl").read_text()
    (trained.root / "link.jsonl").symlink_to("val.jsonl")
    for own in ("val.jsonl", "link.jsonl"):
        refused = trained.run_cli("predict", "runs/run", "val.jsonl", "-o", own, "--force")
        assert refused.stderr.startswith(f"error: {own} is what is to be answered: it would be overwritten")
    assert (trained.root / "val.jsonl").read_text() == asked
    done = trained.run_cli("predict", "runs/run", "val.jsonl", "-o", "taken.jsonl", "--force", "--max-new-tokens", "1")
    assert done.code == 0 and len(lines_of((trained.root / "taken.jsonl").read_text())) == 3


def test_a_place_where_no_model_can_be_written_is_refused_before_one_loads(trained, monkeypatch):
    monkeypatch.setattr("vlmtune.engine.merge.load_tuned", None)
    (trained.root / "file").write_text("mine")
    for out, said in (("file", "Not a directory"), ("file/in", "Not a directory"), ("x" * 300, "File name too long")):
        refused = trained.run_cli("merge", "runs/run", "-o", out)
        assert (
            refused.code == 1
            and refused.stderr == f"error: {out} cannot be written: {said}\nhint:  give a new folder\n"
        )
    assert "the folder that the command runs in" in trained.run_cli("merge", "runs/run", "-o", ".").stderr
    told = trained.run_cli("merge", "runs/run", "-o", "new", "--model", "nowhere/at/all").stderr
    assert told.startswith("error: --model: there is no folder"), told
    (trained.root / "whole").mkdir()
    (trained.root / "whole" / "config.json").write_text("{}")
    assert "generate and chat ask a whole model" in trained.run_cli("evaluate", "whole").stderr


def test_one_token_and_one_step_are_said_so(trained):
    cut = trained.run_cli("evaluate", "runs/run", "--max-new-tokens", "1").stdout
    assert "3 of 3 answers at 1 token: " in cut
    assert "finished: 1 step in" in trained.train("short", "training.max_steps=1").stdout


def test_an_evaluation_is_judged_by_its_metrics_and_kept(trained):
    folder = trained.run("run")
    printed = json.loads(trained.run_cli("evaluate", "runs/run", *SHORT, "--json").stdout)
    kept = read_json(folder.evaluation, EvaluationRecord)
    assert kept.metrics.keys() == {"cer", "exact"} == kept.rows[0].scores.keys() and kept.before is None
    assert (kept.asked, kept.data, len(kept.rows)) == ("adapter", "val.jsonl", 3)
    assert kept.rows[0].expected == [trained.rows[0]["answer"], "another"]
    assert kept.rows[0].images == ["../../red0.png"]
    assert printed["metrics"] == kept.metrics and printed["exact_match"] == kept.metrics["exact"]
    assert [row["answer"] for row in printed["answers"]] == [row.answer for row in kept.rows]
    told = trained.run_cli("evaluate", "runs/run", *SHORT, "--metric", "contains", "--batch-size", "2")
    assert "contains " in told.stdout and "cer" not in told.stdout
    assert "it is red | another" in " ".join(told.stdout.split())
    refused = trained.run_cli("evaluate", "runs/run", "--metric", "bleu")
    assert refused.code == 2 and "bleu is none of exact," in refused.stderr


def test_two_models_are_compared_row_by_row(trained):
    found = json.loads(trained.run_cli("evaluate", "runs/run", *SHORT, "--compare", "base", "--json").stdout)
    base = json.loads(trained.run_cli("evaluate", "runs/run", *SHORT, "--base", "--json").stdout)
    assert found["before"]["asked"] == "base" and found["before"]["metrics"] == base["metrics"] != found["metrics"]
    assert [row["before"]["answer"] for row in found["answers"]] == [row["answer"] for row in base["answers"]]
    gains = {row["where"]: row["before"]["scores"]["cer"] - row["scores"]["cer"] for row in found["answers"]}
    assert set(found["better"]) == {where for where, gain in gains.items() if gain > 0}
    assert set(found["worse"]) == {where for where, gain in gains.items() if gain < 0}
    assert found["better"] or found["worse"]
    kept = read_json(trained.run("run").evaluation, EvaluationRecord)
    assert kept.before.asked == "base", "--base alone has files of its own"
    of_base = trained.run("run").base_evaluation
    assert json.loads(of_base.read_text())["metrics"] == base["metrics"]
    assert of_base.with_suffix(".html").read_text().count("<article") == len(base["answers"])
    trained.train("other", "training.max_steps=1")
    itself = trained.run_cli("evaluate", "runs/run", *SHORT, "--compare", "runs/run")
    assert itself.code == 2 and "that is the run itself" in itself.stderr
    told = trained.run_cli("evaluate", "runs/run", *SHORT, "--compare", "runs/other").stdout
    assert "other/adapter" in told and "points" in told and "better by cer: " in told
    refused = trained.run_cli("evaluate", "runs/run", "--compare", "base", "--base")
    assert refused.code == 2 and "--compare base" in refused.stderr
