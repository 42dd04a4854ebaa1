"""Rows measured once: their lengths under any plan are arithmetic."""

import dataclasses

import pytest
from PIL import Image
from tiny.rows import colour_rows, picture, sample

from vlmtune.data.measure import lengths as module
from vlmtune.data.measure.lengths import measure, refuse_too_long
from vlmtune.data.types import Sample, Turn
from vlmtune.errors import VlmtuneError


def text_row(question: str, where: str = "rows.jsonl:9") -> Sample:
    return Sample((Turn("user", (question,)), Turn("assistant", ("yes",))), where)


@pytest.fixture
def rows(tmp_path) -> list[Sample]:
    two = [picture(tmp_path, name, size_px, "red") for name, size_px in (("wide", (300, 20)), ("tall", (20, 300)))]
    return [text_row("no picture?"), *colour_rows(tmp_path), sample("two?", "yes", *two), text_row("none again?")]


def test_lengths_are_those_of_each_row_alone(models, rows):
    tiny = models("qwen2_vl")
    lengths = measure(rows, tiny.processor, tiny.family).lengths(tiny.plan, tiny.family, tiny.source)
    alone = [
        measure([row], tiny.processor, tiny.family).lengths(tiny.plan, tiny.family, tiny.source).total.tolist()
        for row in rows
    ]
    assert len(lengths) == len(rows) and [[total] for total in lengths.total.tolist()] == alone
    assert lengths.image[0] == lengths.image[-1] == 0 < lengths.image[5]
    assert [lengths.where(index) for index in range(len(rows))] == [row.where for row in rows]
    assert lengths.longest() == alone.index(max(alone)) == 3


def test_a_smaller_picture_size_is_counted_without_looking_at_rows_again(models, rows, monkeypatch):
    tiny = models("qwen2_vl")
    measures = measure(rows, tiny.processor, tiny.family)
    monkeypatch.setattr(module, "image_size_px", None)
    monkeypatch.setattr(module, "render", None)
    smaller = dataclasses.replace(tiny.plan, image_size=56)
    lengths, shrunk = (measures.lengths(plan, tiny.family, tiny.source) for plan in (tiny.plan, smaller))
    assert shrunk.text.tolist() == lengths.text.tolist()
    assert 0 < shrunk.image.sum() < lengths.image.sum()


def test_each_size_of_image_is_counted_once(models, rows):
    tiny = models("qwen2_vl")
    counted = []

    def image_tokens(config, preprocessor, width_px, height_px):
        counted.append((width_px, height_px))
        return width_px

    measures = measure([*rows, *rows], tiny.processor, tiny.family)
    lengths = measures.lengths(tiny.plan, dataclasses.replace(tiny.family, image_tokens=image_tokens), tiny.source)
    assert sorted(counted) == sorted({Image.open(ref.path).size for row in rows for ref in row.images})
    assert lengths.image.tolist() == 2 * [0, 40, 70, 100, 130, 320, 0]


def test_no_rows_have_no_lengths(models):
    tiny = models("llava")
    assert len(measure([], tiny.processor, tiny.family).lengths(tiny.plan, tiny.family, tiny.source)) == 0


def test_all_rows_over_the_limit_are_named(models, rows):
    tiny = models("llava")
    lengths = measure(rows, tiny.processor, tiny.family).lengths(tiny.plan, tiny.family, tiny.source)
    plan = dataclasses.replace(tiny.plan, max_length=int(lengths.text.min()))
    with pytest.raises(VlmtuneError, match=f"rows have more than data.max_length: {plan.max_length} text") as error:
        refuse_too_long(lengths, plan)
    over = [index for index in range(len(rows)) if lengths.text[index] > plan.max_length]
    assert [problem.message for problem in error.value.problems] == [
        f"{rows[index].where}: {lengths.text[index]} text tokens" for index in over
    ]
    assert error.value.hint == f"set data.max_length: {lengths.text.max()}, or data.truncation: cut"
    refuse_too_long(lengths, dataclasses.replace(plan, truncation="cut"))


def test_rows_with_images_that_the_processor_refuses_are_named(models, tmp_path, rows):
    tiny = models("qwen2_vl")
    thin = [picture(tmp_path, f"thin{width}", (width, 2), "red") for width in (401, 900)]
    bad = [sample("thin?", "yes", rows[1].images[0], thin[1], where=f"rows.jsonl:{line}") for line in (7, 9)]
    measures = measure([*rows, bad[0], sample("fits?", "yes", thin[0]), bad[1]], tiny.processor, tiny.family)
    with pytest.raises(VlmtuneError, match=f"3 of {len(rows) + 3} rows do not fit the model") as error:
        measures.lengths(tiny.plan, tiny.family, tiny.source)
    said = "this model takes no image with one side over 200 times the other"
    assert [problem.message for problem in error.value.problems] == [
        f"rows.jsonl:7: {said}: 900×2 px",
        f"rows.jsonl:1: {said}: 401×2 px",
        f"rows.jsonl:9: {said}: 900×2 px",
    ]
    assert [problem.hint for problem in error.value.problems] == [
        "cut the image into pieces, or put it on a larger background",
        None,
        None,
    ]
    shrunk = dataclasses.replace(tiny.plan, image_size=300)
    refused = measures.refused_rows(shrunk, tiny.family, tiny.source)
    assert list(refused) == [len(rows), len(rows) + 1, len(rows) + 2]
    assert refused[len(rows)].message == f"rows.jsonl:7: {said}: 900×2 px, 300×1 px by data.image_size: 300"
    small = dataclasses.replace(tiny.plan, image_size=150)
    assert not measures.refused_rows(small, tiny.family, tiny.source)
    assert measures.lengths(small, tiny.family, tiny.source).image.sum() > 0
