"""Rows with `objects`: names and boxes in their places, or why not."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from vlmtune.data.boxes.marks import boxes_in, has_marks, replaced
from vlmtune.data.boxes.objects import _HINT, _HINT_CORNERS
from vlmtune.data.checked import with_images_checked
from vlmtune.data.reading.formats import parse_row
from vlmtune.data.reading.image_refs import ImageRules
from vlmtune.data.samples import read_samples
from vlmtune.data.types import RowProblem, Sample

RULES = ImageRules("/data", allow_urls=False)
CAT = {"ref": ["cat"], "bbox": [[10, 20, 30, 40]]}


def row(question: str, answer: str, objects: object, images: tuple[str, ...] = ("a.png",)) -> dict:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": list(images), "objects": objects}


def parsed(*args, **more) -> Sample:
    return parse_row(row(*args, **more), "rows.jsonl:1", RULES).sample


def shown(sample: Sample) -> list[str]:
    """The texts with boxes as people would write them: picture, numbers, p for pixels or s for shares."""
    return [
        replaced(turn.text, lambda box: f"{box.image}{list(box.numbers)}{'p' if box.in_pixels else 's'}", str.upper)
        for turn in sample.turns
    ]


@pytest.mark.parametrize(
    ("question", "answer", "objects", "expected"),
    [
        ("<image>find <ref-object>", "<bbox>", CAT, ["find CAT", "0[10.0, 20.0, 30.0, 40.0]p"]),
        ("<image>what is in <bbox>?", "<ref-object>", CAT, ["what is in 0[10.0, 20.0, 30.0, 40.0]p?", "CAT"]),
        ("find <ref-object>", "there", CAT, ["find CAT", "there"]),
        ("find it", "<bbox>", CAT, ["find it", "0[10.0, 20.0, 30.0, 40.0]p"]),
        ("find sheep", "<bbox><bbox>", {"ref": [], "bbox": [[1, 2, 3, 4], [5, 6, 7, 8]]},
         ["find sheep", "0[1.0, 2.0, 3.0, 4.0]p0[5.0, 6.0, 7.0, 8.0]p"]),
        ("point at it", "<bbox>", {"bbox": [[1, 2]]}, ["point at it", "0[1.0, 2.0]p"]),
        ("find", "<bbox>", {"bbox": [[0.1, 0.2, 0.3, 0.4]], "bbox_type": "norm1"},
         ["find", "0[0.1, 0.2, 0.3, 0.4]s"]),
        ("find", "<bbox>", {"bbox": [[100, 200, 300, 1000]], "bbox_type": "norm1000"},
         ["find", "0[0.1, 0.2, 0.3, 1.0]s"]),
        ("find", "<bbox>", {"bbox": [[100, 50, 200, 100]], "width": [400], "height": [100]},
         ["find", "0[0.25, 0.5, 0.5, 1.0]s"]),
        ("find", '{"bbox_2d": <bbox>, "label": "<ref-object>"}', json.dumps(CAT),
         ["find", '{"bbox_2d": 0[10.0, 20.0, 30.0, 40.0]p, "label": "CAT"}']),
    ],
)  # fmt: skip
def test_names_and_boxes_go_into_their_places(question, answer, objects, expected):
    assert shown(parsed(question, answer, objects)) == expected


def test_image_id_says_which_picture_a_box_is_in():
    objects = {"bbox": [[1, 2, 3, 4], [5, 6, 7, 8]], "image_id": [1, 0]}
    sample = parsed("<image><image>find", "<bbox> <bbox>", objects, images=("a.png", "b.png"))
    assert [box.image for box in boxes_in(sample.answer)] == [1, 0]


def test_objects_that_were_used_are_no_unused_column():
    assert parse_row(row("q", "<bbox>", CAT | {"ref": []}), "", RULES).unused_columns == frozenset()
    assert parse_row(row("q", "a", CAT), "", RULES).unused_columns == {"objects"}


@pytest.mark.parametrize(
    ("objects", "problem", "hint"),
    [
        ({"bbox": []}, "objects has 0 boxes for 1 <bbox> in the texts", _HINT),
        ({"bbox": [[1, 2, 3, 4], [5, 6, 7, 8]]}, "objects has 2 boxes for 1 <bbox> in the texts", _HINT),
        ("{", "objects is not valid JSON", _HINT),
        ([1], "objects is a list where an object is expected", _HINT),
        ({"boxes": [[1, 2, 3, 4]]},
         "objects has the key 'boxes', known are ref, bbox, bbox_type, image_id, width, height", _HINT),
        ({"ref": "cat", "bbox": [[1, 2, 3, 4]]}, "objects: ref is no list of strings", _HINT),
        ({"bbox": 3}, "objects: bbox is a number where a list of boxes is expected", _HINT),
        ({"bbox": [[1, 2, 3]]}, "objects: box 1 is no list of 2 or 4 numbers", _HINT_CORNERS),
        ({"bbox": [[1, 2, 3, "4"]]}, "objects: box 1 is no list of 2 or 4 numbers", _HINT_CORNERS),
        ({"bbox": [[1, 2, 3, float("nan")]]}, "objects: box 1 is no list of 2 or 4 numbers", _HINT_CORNERS),
        ({"bbox": [[100, 200, 30, 40]]}, "objects: box 1, [100, 200, 30, 40], ends before it begins", _HINT_CORNERS),
        ({"bbox": [[1, 2, 3, 4]], "bbox_type": "xywh"}, "objects: bbox_type is 'xywh'",
         "known: real, norm1, norm_1, norm1000, norm_1000"),
        ({"bbox": [[1, 2, 3, 4]], "bbox_type": "norm1"}, "objects: box 1, [1, 2, 3, 4], lies outside its picture",
         "bbox_type says what numbers mean"),
        ({"bbox": [[1, 2, 3, 4]], "image_id": [1]}, "objects: image_id is not the number of an image for each box",
         "1 number from 0 to 0, or leave it out: the boxes are in the first"),
        ({"bbox": [[1, 2, 3, 4]], "width": [0], "height": [3]},
         "objects: width and height are not those of each image", _HINT),
    ],
)  # fmt: skip
def test_objects_that_do_not_fit(objects, problem, hint):
    with pytest.raises(RowProblem) as raised:
        parsed("find", "<bbox>", objects)
    assert (raised.value.problem, raised.value.hint) == (problem, hint)


def test_boxes_need_a_picture():
    with pytest.raises(RowProblem, match="objects has boxes, and the row no image"):
        parsed("find", "<bbox>", {"bbox": [[1, 2, 3, 4]]}, images=())


def test_marks_in_texts_are_refused():
    with pytest.raises(RowProblem, match="a text holds what is no character"):
        parsed("find", "\ufdd2", None)
    assert parsed("find", "\ue010", None).answer == "\ue010"  # icons in texts of documents


# Beside their pictures -----------------------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["in memory", "a table"])
def read(request, tmp_path, monkeypatch):
    """Reads rows about a picture of 100×60 px, which a phone holds upright."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param:
        monkeypatch.setattr("vlmtune.data.samples.LARGE_BYTES", 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 100), "red").save(tmp_path / "a.png", exif=exif)

    def checked(*rows: dict):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))
        return with_images_checked(read_samples(path))

    return checked


def test_a_box_outside_of_its_picture_is_a_bad_row(read):
    boxes = ([0, 0, 100, 60], [99, 0, 101, 61], [0, 0, 60, 100], [1, 1], [50, 70])
    rows = read(*(row("find", "<bbox>", {"bbox": [box]}) for box in boxes), row("q", "a", None))
    assert [bad.where for bad in rows.bad_rows] == ["rows.jsonl:3", "rows.jsonl:5"]
    assert rows.bad_rows[0].problem == "the box [0, 0, 60, 100] lies outside its picture of 100×60 px"
    assert [sample.where[-1] for sample in rows.samples] == ["1", "2", "4", "6"]


def test_a_row_of_a_picture_that_cannot_be_used_is_bad_once(read):
    rows = read(row("find", "<bbox>", {"bbox": [[0, 0, 9, 9]]}, images=("b.png",)))
    assert len(rows.bad_rows) == 1


def test_rows_without_boxes_are_left_alone():
    sample = parsed("q", "a", None)
    assert not any(has_marks(turn.text) for turn in sample.turns)
    assert replace(sample) == sample
