"""Pictures of a table are looked at once, and again when their files have changed."""

import os

import numpy as np
import pytest
from PIL import Image

from vlmtune.data.images import image_size_px
from vlmtune.data.samples import read_samples
from vlmtune.data.table import looks
from vlmtune.data.table.kept import kept_array
from vlmtune.data.table.looks import image_sizes_px
from vlmtune.data.types import RowProblem
from vlmtune.errors import VlmtuneError

from .conftest import read, write

pytestmark = pytest.mark.usefixtures("every_file_is_large", "in_this_process")


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The pictures that were opened, each time."""
    names = []
    real = looks.checked_look
    monkeypatch.setattr(looks, "checked_look", lambda ref: names.append((ref.path or ref.url)[-5:]) or real(ref))
    return names


def test_each_picture_is_opened_once_and_not_at_the_next_start(data, opened):
    assert [bad.where for bad in read(data).bad_rows] == ["rows.jsonl:8", "rows.jsonl:15", "rows.jsonl:16"]
    assert sorted(opened) == ["a.png", "b.png", "e.png"]
    opened.clear()
    again = read(data)
    assert opened == ["e.png"], "what is missing may have come"
    assert again.bad_rows[1].problem == f"image {data.parent / 'gone.png'} does not exist"
    assert len(again.samples) == 17


@pytest.mark.parametrize("change", ["another size", "damage", "gone", "touched"])
def test_a_picture_that_has_changed_is_looked_at_again(change, data, opened):
    read(data)
    opened.clear()
    picture = data.parent / "b.png"
    if change == "another size":
        Image.new("RGB", (99, 11), "red").save(picture)
    elif change == "damage":
        picture.write_bytes(picture.read_bytes()[:-20])
    elif change == "gone":
        picture.unlink()
    else:
        os.utime(picture, ns=(1, 1))
    rows = read(data)
    assert sorted(opened) == ["b.png", "e.png"]
    is_bad = change in ("damage", "gone")
    assert len(rows.samples) == 17 - is_bad
    assert ("rows.jsonl:5" in [bad.where for bad in rows.bad_rows]) is is_bad
    if change == "another size":
        assert [99, 11] in image_sizes_px(rows.samples)[1].tolist()


def test_what_was_seen_before_is_read_once_for_all_pieces(data, monkeypatch):
    read(data)
    asked = []
    monkeypatch.setattr(
        looks, "kept_array", lambda path, otherwise: asked.append(path.name) or kept_array(path, otherwise)
    )
    assert len(read(data).samples) == 17
    assert asked == [looks.LOOKS]


def test_an_empty_file_from_the_beginning_of_time_is_not_taken_for_known(data):
    (data.parent / "b.png").write_bytes(b"")
    os.utime(data.parent / "b.png", ns=(0, 0))
    for _ in range(2):
        assert f"image {data.parent / 'b.png'} is an empty file" in [bad.problem for bad in read(data).bad_rows]


def test_a_repaired_picture_brings_its_row_back(data):
    assert len(read(data).samples) == 17
    Image.new("RGB", (8, 8)).save(data.parent / "gone.png")
    rows = read(data)
    assert len(rows.samples) == 18
    assert [sample.where for sample in rows.samples][13] == "rows.jsonl:15"


def test_sizes_are_those_of_the_rows_pictures(data):
    samples = read(data).samples
    num_images, sizes_px = image_sizes_px(samples)
    assert num_images.tolist() == [len(sample.images) for sample in samples]
    ends = np.cumsum(num_images)
    for sample, start, end in zip(samples, ends - num_images, ends, strict=True):
        assert sorted(map(tuple, sizes_px[start:end])) == sorted(map(image_size_px, sample.images))


def test_two_bad_pictures_of_a_row_are_both_named_each_once(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"images": ["x.png", "y.png", "x.png"], "question": "q", "answer": "a"}] * 2)
    found = [(bad.where, bad.problem) for bad in read(path).bad_rows]
    assert found == [
        (f"rows.jsonl:{line}", f"image {tmp_path}/{name}.png does not exist") for line in (1, 2) for name in ("x", "y")
    ]


def test_what_is_behind_an_address_may_change_and_is_always_looked_at(tmp_path, monkeypatch):
    sizes_px = {"https://example.org/a.png": iter([(10, 20, 0), (30, 40, 0)])}
    monkeypatch.setattr(looks, "checked_look", lambda ref: next(sizes_px[ref.url]))
    path = write(tmp_path / "rows.jsonl", [{"image": "https://example.org/a.png", "question": "q", "answer": "a"}])
    for expected in ([[10, 20]], [[30, 40]]):
        assert image_sizes_px(read(path, allow_urls=True).samples)[1].tolist() == expected


def test_looks_that_cannot_be_kept_are_used_all_the_same(data, monkeypatch, opened):
    def full(path, array):
        raise OSError("no space left")

    read_samples(data)
    monkeypatch.setattr("vlmtune.data.table.kept.np.save", full)
    for _ in range(2):
        assert image_sizes_px(read(data).samples)[1].max() == 50
    assert opened.count("a.png") == 2


def test_rows_that_were_not_looked_at_are_before_their_sizes_are_said(data):
    with pytest.raises(VlmtuneError, match="rows.jsonl:15: image .*gone.png does not exist"):
        image_sizes_px(read_samples(data).samples)
    Image.new("RGB", (8, 8)).save(data.parent / "gone.png")
    assert image_sizes_px(read_samples(data).samples)[1].tolist() == image_sizes_px(read(data).samples)[1].tolist()


def test_a_missing_address_names_its_row(tmp_path, monkeypatch):
    def refused(ref):
        raise RowProblem("image cannot be fetched", "download it")

    monkeypatch.setattr(looks, "checked_look", refused)
    path = write(tmp_path / "rows.jsonl", [{"image": "https://example.org/a.png", "question": "q", "answer": "a"}])
    (bad,) = read(path, allow_urls=True).bad_rows
    assert (bad.where, bad.problem, bad.hint) == ("rows.jsonl:1", "image cannot be fetched", "download it")
