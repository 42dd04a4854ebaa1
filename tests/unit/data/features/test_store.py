"""Files of features: whole or not at all, of one model, within the budget; what is wrong with one is said."""

import os
import pickle
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlmtune.data.features import store as stores
from vlmtune.data.features.store import FeatureStore, features_folder, forget_abandoned, free_bytes, make_room
from vlmtune.errors import VlmtuneError

KEY = "a" * 64


def some(*digests: str) -> dict[str, torch.Tensor]:
    return {digest: torch.full((1, 2, 4), float(number)) for number, digest in enumerate(digests)}


@pytest.fixture
def store() -> FeatureStore:
    made = FeatureStore(KEY)
    made.write(some("one", "two"), "l")
    return made


def the_file() -> Path:
    [path] = features_folder().rglob("*.safetensors")
    return path


def test_what_was_written_is_there_for_the_next_run_and_another_process(store):
    for opened in (store, FeatureStore(KEY), pickle.loads(pickle.dumps(store))):
        assert "one" in opened and "three" not in opened
        assert opened.form == "l" and torch.equal(opened["two"], torch.ones(1, 2, 4))


def test_two_runs_that_encode_the_same_images_write_one_file(store):
    other = FeatureStore(KEY)
    other.write(some("one", "two"), "l")
    assert the_file().parent == store.folder
    other.write(some("three"), "l")
    store.look()
    assert "three" in store


def test_another_model_finds_nothing(store):
    assert "one" not in FeatureStore("b" * 64)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def overwritten(path: Path) -> None:
    path.write_bytes(b"no safetensors at all")


def of_other_weights(path: Path) -> None:
    save_file(load_file(path), path, {"format": stores.FORMAT, "made_of": "c" * 64, "form": "l"})


def of_another_version(path: Path) -> None:
    save_file(load_file(path), path, {"format": "0", "made_of": KEY, "form": "l"})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_off, "is damaged"),
        (emptied, "is damaged"),
        (overwritten, "is damaged"),
        (of_other_weights, "was made of other weights"),
        (of_another_version, "is of format 0, this vlmtune reads 1"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(store, damage, words):
    path = the_file()
    damage(path)
    with pytest.raises(VlmtuneError) as raised:
        FeatureStore(KEY)
    assert str(path) in raised.value.message and words in raised.value.message
    assert raised.value.hint == "delete it: it is made again"


def test_a_full_disk_leaves_what_was_there(store, monkeypatch):
    def full(tensors, path, metadata) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stores, "save_file", full)
    with pytest.raises(VlmtuneError, match="the disk is full"):
        store.write(some("three"), "l")
    assert [path.name for path in store.folder.iterdir()] == [the_file().name]
    assert "one" in FeatureStore(KEY)


def test_a_folder_that_takes_no_file_is_named(monkeypatch):
    features_folder().parent.mkdir(parents=True, exist_ok=True)
    features_folder().write_text("in the way")
    with pytest.raises(VlmtuneError, match=r"data.cache_features: features of images cannot be written to"):
        FeatureStore(KEY).write(some("one"), "l")


def test_free_bytes_are_those_of_the_disk_less_a_spare(monkeypatch):
    disk = os.statvfs(features_folder().parents[1])
    free = disk.f_bavail * disk.f_frsize
    assert abs(free_bytes() - max(0, free - stores.SPARE_BYTES)) < 0.05 * free + stores.SPARE_BYTES
    monkeypatch.setattr(stores.os, "access", lambda place, mode: False)
    assert free_bytes() is None


def test_models_unused_for_longest_make_room():
    opened = []
    for age, letter in enumerate("abc"):
        opened.append(FeatureStore(letter * 64))
        opened[-1].write(some("one"), "l")
        os.utime(opened[-1].folder, (time.time() - 100 + age,) * 2)
    total, each = 3 * the_size(opened[0]), the_size(opened[0])
    assert make_room(opened[0], ["one"], 0, total) == 0
    assert make_room(opened[0], ["one"], 1, total) == each
    assert [one.folder.exists() for one in opened] == [True, False, True]


def test_then_images_that_the_run_does_not_have_make_room(store):
    store.write(some("three"), "l")
    used = the_size(store)
    assert make_room(store, ["three"], 1, used) == used - the_size(store) > 0
    for opened in (store, FeatureStore(KEY)):
        assert "three" in opened and "one" not in opened
    assert make_room(store, ["three"], 1, used) == 0


def the_size(store: FeatureStore) -> int:
    return sum(file.stat().st_size for file in store.folder.iterdir())


def test_only_old_half_written_files_are_forgotten(store):
    old, new = (store.folder / f"{name}.safetensors.1.partial" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - stores.ABANDONED_S - 1,) * 2)
    forget_abandoned()
    assert (old.exists(), new.exists(), the_file().exists()) == (False, True, True)
