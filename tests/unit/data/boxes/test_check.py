"""Bare numbers that are pixels of a picture which the model sees smaller are said, with their rows."""

import json

import pytest
from PIL import Image

from vlmtune.data.boxes.check import told_of_boxes, told_without_model
from vlmtune.data.boxes.writing import BoxWriter
from vlmtune.data.checked import with_images_checked
from vlmtune.data.samples import read_samples
from vlmtune.families.boxes import THOUSANDTHS
from vlmtune.families.qwen2_vl import QWEN2_5_VL

QWEN3 = BoxWriter(THOUSANDTHS, None, {})
SMALL = BoxWriter(QWEN2_5_VL, 448, {"patch_size": 14, "merge_size": 2})
WHOLE = BoxWriter(QWEN2_5_VL, None, {"patch_size": 14, "merge_size": 2, "size": {"longest_edge": 10**8}})


@pytest.fixture(params=[False, True], ids=["in memory", "a table"])
def read(request, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param:
        monkeypatch.setattr("vlmtune.data.samples.LARGE_BYTES", 1)
    Image.new("RGB", (1600, 1200), "red").save(tmp_path / "a.png")

    def samples(*answers: str):
        path = tmp_path / "rows.jsonl"
        rows = [{"image": "a.png", "question": "find it", "answer": answer} for answer in ("nothing", *answers)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return with_images_checked(read_samples(path)).samples

    return samples


WARNING = (
    "warning: boxes of 1 row are pixels of the whole picture, but the model reads numbers on one of {size} "
    "(rows.jsonl:2: [{numbers}] on 1600×1200): they are learned as they stand; in a column objects they would follow "
    "the picture"
)


@pytest.mark.parametrize(
    ("numbers", "writer", "size"),
    [
        ("1200, 900, 1500, 1100", SMALL, "448×336"),
        ("500, 300, 600, 310.5", SMALL, "448×336"),
        ("100, 100, 440, 330", SMALL, None),
        ("1200, 900, 1500, 1100", WHOLE, None),
        ("1200, 900, 1500, 1100", QWEN3, "1000×1000"),
        ("100, 900, 1000, 1000", QWEN3, None),
        ("2019, 2020, 2021, 2022", SMALL, None),
    ],
)
def test_rows_whose_numbers_do_not_follow_the_picture_are_named(read, numbers, writer, size):
    expected = (WARNING.format(size=size, numbers=numbers),) if size else ()
    assert told_of_boxes(read(f'{{"bbox_2d": [{numbers}], "label": "cat"}}'), writer) == expected


@pytest.mark.parametrize(
    ("numbers", "image_size", "size"),
    [
        ("1200, 900, 1500, 1100", 448, "448×336"),
        ("1200, 900, 1500, 1100", None, None),
        ("500, 300, 600, 310", 448, None),
    ],
)
def test_what_is_sure_without_the_model(read, numbers, image_size, size):
    expected = (WARNING.format(size=size, numbers=numbers),) if size else ()
    assert told_without_model(read(f"[{numbers}]"), image_size) == expected


def test_three_rows_are_shown_and_all_counted(read):
    [warning] = told_of_boxes(read(*["[1, 2, 1500, 3]"] * 5), SMALL)
    assert warning.startswith("warning: boxes of 5 rows are ")
    assert warning.count("rows.jsonl:") == 3


def test_how_boxes_are_written_is_said(read):
    told = told_of_boxes(read("<box>(1,2),(3,4)</box>"), QWEN3)
    assert told == ("boxes of 1 row are written as [x1, y1, x2, y2], 0 to 1000 over width and height",)
