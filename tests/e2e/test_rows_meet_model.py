"""Rows that a model cannot take are named by file and line before it loads, and skipped where that is asked."""

import json
import shutil

import pytest
from PIL import Image
from tiny import save_tiny

NO_SYSTEM = (
    "{% for m in messages %}{% for p in m['content'] if p['type'] == 'image' and messages[0]['role'] == 'system' %}"
    "{{ raise_exception('Images and a system message do not go together.') }}{% endfor %}{% endfor %}"
)
SYSTEM_ROW = {"system": "Be brief."}
REFUSAL = "the chat template refuses this row: Images and a system message do not go together."


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    """A tiny Qwen2.5-VL whose template takes no system prompt beside an image."""
    folder = save_tiny("qwen2_5_vl", tmp_path_factory.mktemp("models") / "strict")
    template = folder / "chat_template.jinja"
    template.write_text(NO_SYSTEM + template.read_text())
    return folder


@pytest.fixture
def bad_project(project, strict):
    """A project of which five rows fit and five do not: by template, mark in an answer, shapes of pictures."""
    for name, size_px in (("flat", (4000, 10)), ("narrow", (5, 1200)), ("dot", (1, 1))):
        Image.new("RGB", size_px, "red").save(project.root / f"{name}.png")
    good = project.rows[:4]
    project.write_rows(
        [
            *good,
            good[0] | SYSTEM_ROW,
            good[1] | {"answer": "it is <|image_pad|>"},
            good[2] | {"image": "flat.png"},
            good[3] | {"image": "narrow.png"},
            good[0] | {"image": "dot.png"},
            good[1] | SYSTEM_ROW,
        ]
    )
    project.write_config(
        {
            "model": {"name": str(strict)},
            "data": {"train_path": "rows.jsonl"},
            "training": {"method": "lora", "num_epochs": 1, "batch_size": 1, "gradient_accumulation_steps": 1},
        }
    )
    return project


def test_all_rows_that_the_model_cannot_take_are_named_before_it_loads(bad_project, strict, tmp_path):
    without_weights = tmp_path / "without"
    shutil.copytree(strict, without_weights)
    (without_weights / "model.safetensors").unlink()
    for flags in ((), ("--dry-run",)):
        done = bad_project.train("run", f"model.name={without_weights}", flags=flags)
        assert done.code == 1 and "error: 5 of 10 rows do not fit the model" in done.stderr
        said = " ".join(done.stderr.split())
        assert f"rows.jsonl:5: {REFUSAL}" in said and f"rows.jsonl:10: {REFUSAL}" in said
        assert "rows.jsonl:6: a text holds <|image_pad|>, by which the model knows an image" in said
        for line, shape in ((7, "4000×10 px"), (8, "5×1200 px")):
            assert (
                f"rows.jsonl:{line}: image 1 ({shape}): the processor refuses this row: absolute aspect ratio" in said
            )
        assert "rows.jsonl:9" not in said and "data.on_bad_row: skip" in said
        assert not bad_project.run("run").path.exists()


def test_they_are_skipped_where_that_is_asked(bad_project):
    done = bad_project.train("run", "data.on_bad_row=skip")
    assert done.code == 0, done.stderr
    assert "skipping 5 rows" in done.stderr and "5 steps of 1 row" in done.stdout
    report = json.loads(bad_project.run("run").report_json.read_text())
    assert (report["num_rows"], report["num_skipped_rows"], report["steps"]) == (5, 5, 5)
    assert [name.partition(": ")[0] for name in report["skipped"]] == [
        f"rows.jsonl:{line}" for line in (5, 6, 7, 8, 10)
    ]


def test_a_preview_names_them_too(bad_project):
    done = bad_project.run_cli("validate", bad_project.config, "--preview", "1")
    assert done.code == 1 and "5 of 10 rows do not fit the model" in done.stderr
    done = bad_project.run_cli("validate", bad_project.config, "--preview", "1", "--set", "data.on_bad_row=skip")
    assert done.code == 0 and "5 rows skipped that the model cannot take" in done.stderr


def test_an_estimate_leaves_them_out_too(bad_project):
    command = ("estimate-vram", bad_project.config, "--gpu", "8gb", "--fast", "--json")
    refused = bad_project.run_cli(*command)
    assert refused.code == 1 and "5 of 10 rows do not fit the model" in refused.stderr
    skipping = bad_project.run_cli(*command, "--set", "data.on_bad_row=skip")
    assert skipping.code == 0, skipping.stderr
    rows = (bad_project.root / "rows.jsonl").read_text().splitlines(keepends=True)
    good = [row for number, row in enumerate(rows, 1) if number not in (5, 6, 7, 8, 10)]
    (bad_project.root / "rows.jsonl").write_text("".join(good))
    alone = bad_project.run_cli(*command)
    peaks = [json.loads(done.stdout)["peak_reserved_bytes"] for done in (skipping, alone)]
    assert peaks[0] == peaks[1]


MASKED = [{"loss": False}, {"weight": 0}, {"train": False}]


def test_a_preview_shows_turns_that_are_not_learned(project):
    def row(keys: dict) -> dict:
        bad = {"from": "gpt", "value": "BAD ANSWER", **keys}
        rest = [{"from": "human", "value": "q2"}, {"from": "gpt", "value": "good answer"}]
        return {"conversations": [{"from": "human", "value": "q1"}, bad, *rest]}

    project.write_rows([row(keys) for keys in MASKED])
    done = project.run_cli("validate", project.config, "--preview", "3")
    assert done.code == 0, done.stderr
    assert done.stdout.count("BAD ANSWER") == 3 == done.stdout.count("» good answer")
    assert "» BAD" not in done.stdout and "»BAD" not in done.stdout
    trained = project.train("run", "training.num_epochs=1")
    assert trained.code == 0, trained.stderr


def test_held_out_rows_meet_the_model_too(bad_project):
    shutil.copy(bad_project.root / "rows.jsonl", bad_project.root / "val.jsonl")
    bad_project.write_rows(bad_project.rows[:4])
    done = bad_project.train("run", "data.val_path=val.jsonl")
    assert done.code == 1 and "5 of 10 rows do not fit the model" in done.stderr and "val.jsonl:5: " in done.stderr
    done = bad_project.train("run", "data.val_path=val.jsonl", "data.on_bad_row=skip")
    assert done.code == 0 and "skipping 5 held-out rows" in done.stderr
    asked = bad_project.run_cli("evaluate", bad_project.run("run").path, "--data", bad_project.root / "val.jsonl")
    assert asked.code == 0 and "skipping 5 rows" in asked.stderr
    assert asked.stdout.split()[:2] == ["rows", "5"]
    config = bad_project.run("run").config
    config.write_text(config.read_text().replace("on_bad_row: skip", "on_bad_row: error"))
    asked = bad_project.run_cli("evaluate", bad_project.run("run").path, "--data", bad_project.root / "val.jsonl")
    assert asked.code == 1 and "5 of 10 rows do not fit the model" in asked.stderr


def test_rows_that_are_too_long_are_skipped_with_the_others(bad_project):
    settings = ("data.on_bad_row=skip", "data.max_length=100")
    long = bad_project.rows[0] | {"answer": "long " * 30}
    bad_project.write_rows([*bad_project.rows[:3], long, bad_project.rows[0] | SYSTEM_ROW])
    done = bad_project.train("run", *settings)
    assert done.code == 0, done.stderr
    report = json.loads(bad_project.run("run").report_json.read_text())
    assert [name.partition(": ")[0] for name in report["skipped"]] == ["rows.jsonl:4", "rows.jsonl:5"]


def test_a_run_with_a_picture_that_broke_goes_on_without_its_row(project):
    project.train_killed("run")
    (project.root / project.rows[6]["image"]).write_bytes(b"broken")
    done = project.train("run", resume=True)
    assert done.code == 1 and "rows.jsonl:7: image " in done.stderr and "data.on_bad_row: skip" in done.stderr
    done = project.train("run", "data.on_bad_row=skip", resume=True)
    assert done.code == 0 and "continuing from checkpoint-3" in done.stdout, done.stderr


def test_a_run_whose_bad_row_was_removed_says_how_to_go_on(project):
    project.train_killed("run")
    project.write_rows(project.rows[:6])
    done = project.train("run", resume=True)
    said = " ".join(done.stderr.split())
    assert done.code == 1 and "does not hold the rows that the run began with" in said
    assert "put the data file back as it was" in said and "--set data.on_bad_row=skip" in said
    assert "vlmtune merge" in said
