"""Every file of the user's caches × every damage: it is made again, or one error names it; no result is another one.

The suite takes a few, `make damage` all of them.
"""

import os
import random
import shutil
from itertools import product
from pathlib import Path
from traceback import format_exc

import pytest

from .test_damage import DAMAGES

NUM_CASES = int(os.environ.get("VLMTUNE_DAMAGES", "2"))
SETTINGS = (
    "data.cache_features=true",
    "model.cache_quantized=true",
    "data.val_path=rows.jsonl",
    "training.max_steps=2",
)
KINDS = {"features", "bases", "rows", "estimates"}
"""Folders of the cache: what was counted and looked at is beside the rows."""


@pytest.fixture
def cached(project, monkeypatch) -> Path:
    """The caches after a run over rows that are large enough to be kept, and an estimate."""
    monkeypatch.setattr("vlmtune.data.samples.LARGE_BYTES", 1)
    run(project, "first")
    caches = Path(os.environ["XDG_CACHE_HOME"])
    return shutil.copytree(caches, project.root / "caches")


def run(project, name: str) -> tuple:
    """What a run and an estimate say, with the weights that were learned."""
    trained = project.train(name, *SETTINGS)
    estimated = project.run_cli("estimate-vram", project.config, "--gpu", "8gb", "--fast", "--json")
    return trained, estimated


def test_damage_to_a_cache_is_mended_or_named(project, cached, weights):
    assert {path.name for path in (cached / "vlmtune").iterdir()} >= KINDS
    expected = weights(project.run("first"))
    caches = Path(os.environ["XDG_CACHE_HOME"])
    files = sorted(path.relative_to(cached) for path in cached.rglob("*") if path.is_file())
    every = [
        (file, name) for file, name in product(files, DAMAGES) if (cached / file).stat().st_size or name != "one bit"
    ]

    wrong = []
    for number, (file, damage) in enumerate(random.Random(2).sample(every, min(NUM_CASES, len(every)))):
        shutil.rmtree(caches)
        shutil.copytree(cached, caches)
        DAMAGES[damage](caches / file)
        try:
            both = run(project, f"n{number}")
            for done in both:
                if done.code not in (0, 1) or (done.code == 1 and not named(done.stderr, file)):
                    wrong.append(f"{file}: {damage}: {done.code} {done.stderr}")
            found = weights(project.run(f"n{number}")) if both[0].code == 0 else expected
            if found.keys() != expected.keys() or any(not found[name].equal(expected[name]) for name in found):
                wrong.append(f"{file}: {damage}: other weights")
        except Exception:  # all of the table is wanted, not what comes before the first bug
            wrong.append(f"{file}: {damage}: {format_exc()}")
    assert not wrong, "\n".join(wrong)


def named(said: str, file: Path) -> bool:
    return said.startswith("error: ") and "hint:" in said and any(part in said for part in (file.name, file.parts[1]))
