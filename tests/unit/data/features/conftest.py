"""Tiny models with their features made, and rows with several images."""

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny.rows import TinyModel, colour_rows, picture, sample

from vlmtune.data.features import encode
from vlmtune.data.features.prepare import Share, Teller, features_of
from vlmtune.data.features.rows import RowFeatures
from vlmtune.data.features.store import features_folder
from vlmtune.data.progress import silent
from vlmtune.data.types import Sample


@pytest.fixture
def one_at_a_time(monkeypatch):
    """The tower sees one image at a time, as it does in training with rows of one image."""
    monkeypatch.setattr(encode, "NUMBERS_AT_ONCE", 1)


@pytest.fixture
def told() -> list[str]:
    """What the user was told."""
    return []


@pytest.fixture
def featured(told):
    """A function that returns the features of rows under a model's plan, and changes of it."""

    def made(model: TinyModel, rows: list[Sample], share: Share = Share(), **changes) -> RowFeatures:  # noqa: B008
        plan = replace(model.plan, cache_features=True, **changes)
        return features_of(plan, model.source, [rows], model.processor, Teller(silent, told.append), share)[0]

    return made


@pytest.fixture
def rows(tmp_path) -> list[Sample]:
    """Rows of one image each, of several sizes; one picture twice under two names."""
    twin = picture(tmp_path, "twin", (40, 60), "red")
    return [*colour_rows(tmp_path, 4), sample("Again?", "yes", twin, where="rows.jsonl:5")]


def files(folder: Path | None = None) -> dict[str, dict[str, bytes]]:
    """What each file of the cache holds; the order of a header's words is another each time."""
    found = {path.name: load_file(path) for path in (folder or features_folder()).rglob("*.safetensors")}
    return {name: {key: value.numpy().tobytes() for key, value in held.items()} for name, held in found.items()}
