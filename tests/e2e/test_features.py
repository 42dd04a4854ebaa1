"""A run whose images are encoded before the language model loads: the same to the bit as one with its tower."""

import json

import pytest
from tiny import save_tiny

from vlmtune.data.features import encode, prepare
from vlmtune.files import cache_folder
from vlmtune.models import build
from vlmtune.plan.file import load_plan

CACHED = "data.cache_features=true"
EVALUATED = ("data.val_path=rows.jsonl", "training.eval_steps=4")


@pytest.fixture(autouse=True)
def one_at_a_time(monkeypatch):
    """The tower sees one image at a time, as it does in training with rows of one image."""
    monkeypatch.setattr(encode, "NUMBERS_AT_ONCE", 1)


@pytest.fixture
def encoded(monkeypatch) -> list[str]:
    """The images that were encoded."""
    seen, real = [], prepare.encode_into

    def watched(store, plan, files, *rest) -> None:
        seen.extend(image.digest for file in files for image in file)
        real(store, plan, files, *rest)

    monkeypatch.setattr(prepare, "encode_into", watched)
    return seen


def losses(folder) -> list:
    return [(line["loss"], line["eval_loss"]) for line in map(json.loads, folder.log.read_text().splitlines())]


def files() -> list:
    return sorted((cache_folder() / "features").rglob("*.safetensors"))


def test_it_ends_with_the_same_weights_and_encodes_once(project, encoded, assert_same_weights):
    assert project.train("plain", *EVALUATED).code == 0 and encoded == []
    cached = project.train("cached", CACHED, *EVALUATED)
    assert cached.code == 0, cached.stderr
    assert "7 images of 7 are encoded before training" in " ".join(cached.stdout.split())
    assert load_plan(project.run("cached").plan).cache_features
    assert losses(project.run("cached")) == losses(project.run("plain"))
    assert_same_weights(project.run("plain"), project.run("cached"))
    assert len(encoded) == 7 and len(files()) == 1
    again = project.train("again", CACHED, *EVALUATED)
    assert again.code == 0 and "encoded before" not in again.stdout and len(encoded) == 7
    assert_same_weights(project.run("plain"), project.run("again"))


def test_it_is_evaluated_without_its_tower_and_asked_and_merged_with_it(project, encoded, monkeypatch):
    for name, words in (("plain", ()), ("cached", (CACHED,))):
        assert project.train(name, *words, *EVALUATED).code == 0
    parts, real = [], build.load_base

    def watched(*args, **kwargs):
        parts.append(kwargs.get("parts"))
        return real(*args, **kwargs)

    monkeypatch.setattr(build, "load_base", watched)
    plain, cached = (project.run_cli("evaluate", project.run(name).path, "--json") for name in ("plain", "cached"))
    assert json.loads(cached.stdout) == json.loads(plain.stdout)
    assert parts == [None, ("text", "head", "other")] and len(encoded) == 7
    project.write_rows(project.rows[:2], "other.jsonl")
    words = ("--image", project.rows[0]["image"], "--prompt", "What colour?")
    asked = [project.run_cli("generate", project.run(name).path, *words).stdout for name in ("plain", "cached")]
    assert asked[0] == asked[1] and parts[2:] == [None, None]
    merged = project.run_cli("merge", project.run("cached").path, "-o", "merged")
    assert merged.code == 0, merged.stderr


def test_rows_that_the_run_never_saw_are_encoded_for_an_evaluation(project, encoded):
    assert project.train("cached", CACHED).code == 0
    from tiny.rows import picture

    picture(project.root, "new", (50, 50), "green")
    project.write_rows([{"image": "new.png", "question": "What colour?", "answer": "it is green"}], "new.jsonl")
    done = project.run_cli("evaluate", project.run("cached").path, "--data", "new.jsonl")
    assert done.code == 0, done.stderr
    assert len(encoded) == 8 and "1 image of 1 are encoded" in done.stderr


@pytest.mark.parametrize(("before", "after"), [((), (CACHED,)), ((CACHED,), ())])
def test_a_resumed_run_may_change_it(before, after, project, assert_same_weights):
    assert project.train("whole").code == 0
    project.train_killed("cut", *before)
    resumed = project.train("cut", *after, resume=True)
    assert resumed.code == 0, resumed.stderr
    assert_same_weights(project.run("whole"), project.run("cut"))


def test_workers_read_the_features(project, assert_same_weights):
    assert project.train("here", CACHED).code == 0
    assert project.train("workers", CACHED, "hardware.num_workers=2").code == 0
    assert_same_weights(project.run("here"), project.run("workers"))


def test_a_damaged_file_stops_a_run_and_loses_nothing(project):
    assert project.train("first", CACHED).code == 0
    [file] = files()
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    failed = project.train("second", CACHED)
    assert failed.code == 1 and str(file) in failed.stderr.replace("\n", "") and "is damaged" in failed.stderr
    assert not project.run("second").path.exists() and project.run("first").adapter.is_dir()
    file.unlink()
    assert project.train("second", CACHED).code == 0
    assert [path.name for path in files()] == [file.name]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("training.lora.vision_tower=true",), "the vision tower learns"),
        (("training.method=full",), "method full saves the whole model"),
        (("data.cache_features_gib=0.0000001",), "but the features of 7 images take"),
    ],
)
def test_what_cannot_be_is_said_at_once(words, told, project, monkeypatch):
    monkeypatch.setattr(build, "load_base", None)
    failed = project.train("run", CACHED, *words)
    assert failed.code == 1 and told in " ".join(failed.stderr.split())
    assert not project.run("run").path.exists() and files() == []


def test_a_tower_that_reads_the_text_is_refused_by_name(project, tmp_path):
    folder = save_tiny("instructblip", tmp_path / "instructblip")
    failed = project.train("run", f"model.name={folder}", CACHED)
    said = " ".join(failed.stderr.split())
    assert failed.code == 1
    assert "instructblip models cannot have their images encoded before: the Q-Former reads the question" in said
