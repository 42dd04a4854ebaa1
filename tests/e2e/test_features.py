"""A run whose images are encoded before the language model loads: as one with its tower, to the bit, and used alike."""

import json

import pytest
from vlmtune.data.features import encode

from vlmtune.files import cache_folder
from vlmtune.plan.file import load_plan

CACHED = ("data.cache_features=true", "data.val_path=rows.jsonl", "training.eval_steps=4")


@pytest.fixture
def one_at_a_time(monkeypatch):
    """The tower sees one image at a time, as it does in training with rows of one image."""
    monkeypatch.setattr(encode, "NUMBERS_AT_ONCE", 1)


def losses(folder) -> list:
    return [(line["loss"], line["eval_loss"]) for line in map(json.loads, folder.log.read_text().splitlines())]


def files() -> list:
    return sorted((cache_folder() / "features").rglob("*.safetensors"))


def test_a_run_with_cached_features_is_the_same_to_the_bit(project, one_at_a_time, assert_same_weights):
    plain = project.train("plain", *CACHED[1:])
    cached = project.train("cached", *CACHED)
    assert (plain.code, cached.code) == (0, 0), cached.stderr
    assert load_plan(project.run("cached").plan).cache_features
    assert len(files()) == 1
    assert losses(project.run("cached")) == losses(project.run("plain"))
    assert_same_weights(project.run("plain"), project.run("cached"))
