"""Killed at random moments while it encodes, a run goes on where it was, and its features are the same to the bit.

`make kills` kills it twenty times.
"""

import multiprocessing
import os
import random
import time
from collections.abc import Callable

import pytest
import torch
from tiny.rows import picture, sample

from vlmtune.data.features import encode

from .conftest import files

NUM_KILLS = int(os.environ.get("VLMTUNE_KILLS", "2"))
NUM_IMAGES = 20 * NUM_KILLS
TWO_IMAGES = 2 * 3 * 28 * 28
BYTES_OF_IMAGE = 4 * 64 * 4


@pytest.fixture
def killed_after(models, rows, featured, monkeypatch) -> Callable[[float], int]:
    """Encodes in another process, kills it after so many seconds, returns how many files are left."""
    real, forked = encode.features_of_batch, multiprocessing.get_context("fork")

    def run(seconds: float) -> int:
        began = forked.Event()

        def slowly(*args):
            began.set()
            time.sleep(0.05)
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(encode, "features_of_batch", slowly)
            process = forked.Process(target=featured, args=(models("llava"), rows))
            process.start()
        assert began.wait(60)
        process.join(seconds)
        process.kill()
        process.join()
        return len(files())

    return run


@pytest.fixture
def rows(tmp_path) -> list:
    """Rows of one image each, all different and of one size."""
    return [
        sample("?", "!", picture(tmp_path, f"p{number}", (40, 60), f"#{number * 4000:06x}"))
        for number in range(NUM_IMAGES)
    ]


def test_kills_lose_nothing_and_change_nothing(models, rows, featured, killed_after, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "NUMBERS_AT_ONCE", TWO_IMAGES)
    monkeypatch.setattr(encode, "FILE_BYTES", BYTES_OF_IMAGE + 1)
    rng = random.Random(7)
    left = [killed_after(rng.uniform(0.3, 0.8)) for _ in range(NUM_KILLS)]
    assert left == sorted(left) and 0 < left[0] and left[-1] < NUM_IMAGES / 2
    kept = files()
    after_kills = featured(models("llava"), rows)
    ended = files()
    assert kept.items() <= ended.items()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    undisturbed = featured(models("llava"), rows)
    assert files() == ended and len(ended) == NUM_IMAGES / 2
    assert all(torch.equal(after_kills.of_row(row), undisturbed.of_row(row)) for row in range(NUM_IMAGES))
