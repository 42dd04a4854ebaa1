"""What this user may not read or write is one clear error, before the model loads; permissions hold for root too."""

import json
import shutil

import pytest
from access import closed


def error_of(result) -> str:
    assert result.code == 1 and "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


@pytest.fixture
def refused(project, monkeypatch):
    """A function that returns the error of `train`, or of a command, while a file or folder is closed."""
    monkeypatch.setattr("vlmtune.engine.train.build_model", None)

    def told(name: str, mode: int = 0, command: str = "train", **data) -> str:
        values = {"model": {"name": str(project.model)}, "data": {"train_path": "rows.jsonl", **data}}
        project.write_config({**values, "output_dir": "runs", "training": {"max_steps": 1}})
        with closed(project.root / name, mode):
            return error_of(project.run_cli(command, project.config))

    return told


def test_a_file_of_rows(refused):
    assert "rows.jsonl cannot be read: Permission denied hint: check" in refused("rows.jsonl")


@pytest.fixture
def shards(project):
    """A folder with rows, and one in it."""
    (project.root / "shards/in").mkdir(parents=True)
    (project.root / "shards/a.jsonl").write_text(json.dumps(project.rows[0]))


@pytest.mark.parametrize(
    ("name", "mode", "path", "words"),
    [
        ("shards", 0, "shards", "shards cannot be read"),
        ("shards", 0o600, "shards", "shards/state.json cannot be read"),
        ("shards", 0, "shards/a.jsonl", "shards/a.jsonl cannot be read"),
        ("shards/a.jsonl", 0, "shards", "shards/a.jsonl cannot be read"),
        ("shards/in", 0, "shards", "shards/in cannot be read"),
    ],
)
def test_a_folder_of_rows_or_one_of_them(name, mode, path, words, refused, shards):
    said = refused(name, mode, "validate", train_path=path)
    assert f"{words}: Permission denied hint: check" in said and "data.train_path" in said


def test_a_picture(refused, project):
    name = project.rows[2]["image"]
    assert f"rows.jsonl:3: image {project.root / name} cannot be read: Permission denied" in refused(name)


@pytest.fixture
def own_model(project):
    """A copy of the model, which other tests do not use."""
    project.model = shutil.copytree(project.model, project.root / "own-model")
    return "own-model"


@pytest.mark.parametrize("name", ["", "config.json", "tokenizer.json", "model.safetensors"])
def test_a_model(name, refused, own_model):
    said = refused(f"{own_model}/{name}")
    assert f"{own_model}/{name or 'config.json'} cannot be" in said and "Permission denied hint: check" in said


def test_the_folder_of_runs(refused, project):
    (project.root / "runs").mkdir()
    assert "cannot create the run folder" in refused("runs", 0o500)


def test_the_cache(refused, project, monkeypatch):
    (project.root / "cache").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(project.root / "cache"))
    said = refused("cache", 0o500, cache_features=True)
    assert "features of images cannot be written to" in said and "cache_features: false" in said


def test_a_cache_that_cannot_be_written_stops_no_run(project, monkeypatch):
    (project.root / "cache").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(project.root / "cache"))
    with closed(project.root / "cache", 0o500):
        assert project.train("run", "training.max_steps=1").code == 0
    run = project.run("run").path
    with closed(run, 0o500):
        assert "cannot lock the run folder" in (said := error_of(project.train("run", resume=True)))
        assert "check its permissions" in said
        asked = project.run_cli("evaluate", run, "--data", "rows.jsonl")
    assert asked.code == 0 and "the evaluation cannot be written into" in asked.stderr
    assert "rows " in asked.stdout
