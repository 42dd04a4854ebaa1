"""Which rows are taken and which are held out."""

from dataclasses import replace

import pytest
from tiny.rows import sample

from vlmtune.data import samples as reading
from vlmtune.data.samples import read_samples
from vlmtune.data.sources.shares import limited, split
from vlmtune.data.table import make
from vlmtune.data.types import ImageRef, Rows, Sample
from vlmtune.errors import VlmtuneError


def rows(*images: str) -> list[Sample]:
    """One row for each word: its letters are its images."""
    return [
        replace(sample("q", "a", *(ImageRef(path=f"/{name}") for name in names)), number=number)
        for number, names in enumerate(images, 1)
    ]


def numbers(some) -> list[int]:
    return [one.number for one in some]


def test_a_share_is_held_out_and_follows_from_the_seed():
    all_rows = rows(*[""] * 100)
    train, held_out = split(all_rows, 0.2, seed=1)
    assert len(held_out) == 20 and sorted(numbers(train) + numbers(held_out)) == numbers(all_rows)
    assert numbers(held_out) == sorted(numbers(held_out)) == numbers(split(all_rows, 0.2, seed=1)[1])
    assert numbers(held_out) != numbers(split(all_rows, 0.2, seed=2)[1])
    without_one = [row for row in all_rows if row is not train[0]]
    assert len({*numbers(held_out)} & {*numbers(split(without_one, 0.2, seed=1)[1])}) >= 19


@pytest.mark.parametrize("seed", range(5))
def test_rows_with_an_image_in_common_are_on_one_side(seed):
    all_rows = rows("a", "ab", "bc", "d", "d", "e", "f", "c")
    train, held_out = split(all_rows, 0.4, seed)
    names = [{image.path for row in side for image in row.images} for side in (train, held_out)]
    assert train and held_out and not names[0] & names[1]


def test_the_same_embedded_image_is_one_image():
    all_rows = [replace(sample("q", "a", ImageRef(data=b"one")), number=number) for number in (1, 2, 3)]
    with pytest.raises(VlmtuneError, match="all 3 share an image"):
        split(all_rows, 0.5, seed=1)


@pytest.mark.parametrize(("images", "why"), [(["a"], "there is one"), (["a", "a"], "all 2 share an image")])
def test_no_row_on_one_side_is_an_error(images, why):
    with pytest.raises(VlmtuneError, match=f"leaves no row to train on or none to hold out: {why}"):
        split(rows(*images), 0.5, seed=1)


def test_a_share_that_takes_all_rows_is_an_error():
    with pytest.raises(VlmtuneError, match="0.99 leaves no row to train on or none to hold out: there are 3"):
        split(rows("a", "b", "c"), 0.99, seed=1)


def test_a_small_share_holds_out_the_smallest_group():
    train, held_out = split(rows("a", "a", "a", "b", "b"), 0.01, seed=1)
    assert numbers(held_out) == [4, 5] and numbers(train) == [1, 2, 3]


def test_at_most_so_many_rows_are_taken():
    all_rows = Rows(rows(*[""] * 50), [], ("a note",))
    some = limited(all_rows, 10, seed=1)
    assert len(some.samples) == 10 and numbers(some.samples) == sorted(numbers(some.samples))
    assert some.notes == ("a note", "10 of 50 rows are taken (data.max_samples)")
    assert numbers(some.samples) != numbers(limited(all_rows, 10, seed=2).samples)
    assert limited(all_rows, 50, seed=1) is limited(all_rows, None, seed=1) is all_rows


def test_rows_on_disk_are_shared_out_as_those_in_memory(tmp_path, monkeypatch):
    lines = [f'{{"image": "{name}.png", "question": "q{name}", "answer": "a"}}\n' for name in "aabbcdefgh" * 2]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    in_memory = read_samples(tmp_path / "rows.jsonl")
    monkeypatch.setattr(reading, "LARGE_BYTES", 0)
    monkeypatch.setattr(make, "each", map)
    on_disk = read_samples(tmp_path / "rows.jsonl")
    for share in (lambda found: split(found.samples, 0.3, 1), lambda found: [limited(found, 5, 1).samples]):
        expected, shared = share(in_memory), share(on_disk)
        assert [numbers(some) for some in expected] == [numbers(some) for some in shared]
        assert all(not isinstance(some, list) for some in shared)
