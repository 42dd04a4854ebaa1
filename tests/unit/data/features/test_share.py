"""Processes that train together encode images together, into the cache that one of them makes alone."""

import multiprocessing
import random

import pytest
import torch
from tiny.rows import picture, sample

from vlmtune.data.features import encode, prepare
from vlmtune.data.features.prepare import Share
from vlmtune.data.features.store import features_folder
from vlmtune.engine.ranks import group
from vlmtune.engine.ranks.join import Place, join, leave

from .conftest import files

SIZES = ((40, 60), (90, 40), (60, 60), (120, 30))


@pytest.fixture
def rows(tmp_path, monkeypatch) -> list:
    """Rows of an image each, of several sizes, two to a batch and three to a file."""
    monkeypatch.setattr(encode, "NUMBERS_AT_ONCE", 2 * 3 * 28 * 28)
    monkeypatch.setattr(encode, "FILE_BYTES", 2 * 4 * 64 * 4 + 1)
    return [
        sample("?", "!", picture(tmp_path, f"p{number}", SIZES[number % 4], f"#{number * 4000:06x}"))
        for number in range(20)
    ]


@pytest.fixture
def alone(models, rows, featured, tmp_path, monkeypatch) -> dict:
    """The files that one process makes of the rows, before others begin."""
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "alone"))
        featured(models("llava"), rows)
        return files()


def test_two_make_the_files_that_one_makes_each_of_them_half(models, rows, featured, alone, tmp_path, monkeypatch):
    forked = multiprocessing.get_context("fork")
    told, real = forked.SimpleQueue(), prepare.encode_into

    def be(number: int) -> None:
        join(Place(number, 2, None, str(tmp_path / "store")))
        made: list[int] = []
        prepare.encode_into = lambda *args: made.append(len(args[2])) or real(*args)
        features = featured(models("llava"), rows, Share(*group.place_on_machine(), lambda: group.gathered(None)))
        told.put((number, made, all(features.of_row(row) is not None for row in range(len(rows)))))
        leave()

    processes = [forked.Process(target=be, args=(number,)) for number in range(2)]
    for process in processes:
        process.start()
    heard = sorted(told.get() for _ in processes)
    for process in processes:
        process.join(60)
    assert len(alone) == 7 and files() == alone
    assert heard == [(0, [4], True), (1, [3], True)]


def test_what_a_kill_has_left_out_comes_into_the_same_files(models, rows, featured, alone):
    featured(models("llava"), rows)
    for path in random.Random(3).sample(sorted(features_folder().rglob("*.safetensors")), 4):
        path.unlink()
    featured(models("llava"), rows)
    assert files() == alone


def test_what_another_has_not_made_is_made_by_who_needs_it(models, rows, featured, alone):
    """As where a machine has a cache of its own, or another run has written into this one meanwhile."""
    features = featured(models("llava"), rows, Share(1, 2))
    assert files() == alone and torch.isfinite(features.of_row(0)).all()
