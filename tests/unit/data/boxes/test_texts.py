"""Box texts whose meaning is beyond doubt become boxes; all others stay texts."""

import pytest

from vlmtune.data.boxes.marks import boxes_in, has_marks
from vlmtune.data.reading.formats import parse_row
from vlmtune.data.reading.image_refs import ImageRules
from vlmtune.data.types import Sample


def parsed(question: str, answer: str, images: tuple[str, ...] = ("a.png",)) -> Sample:
    row = {"images": list(images), "question": question, "answer": answer}
    return parse_row(row, "rows.jsonl:1", ImageRules("/data", allow_urls=False)).sample


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("<ref>the cat</ref><box>(100,200),(300,400)</box>", (0.1, 0.2, 0.3, 0.4)),
        ("<box>(100, 200), (300, 400)</box>", (0.1, 0.2, 0.3, 0.4)),
        ("<|object_ref_start|>cat<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|>", (0.1, 0.2, 0.3, 0.4)),
        ("<|box_start|>(500,250)<|box_end|>", (0.5, 0.25)),
        ("<loc0256><loc0128><loc0512><loc1023> cat", (0.125, 0.25, 1023 / 1024, 0.5)),
    ],
)
def test_boxes_of_known_conventions(text, shares):
    sample = parsed("find", text)
    [box] = boxes_in(sample.answer)
    assert (box.image, box.in_pixels, box.numbers) == (0, False, shares)
    assert not any(word in sample.answer for word in ("<", "("))


@pytest.mark.parametrize(
    "text",
    [
        "<box>(1200,900),(1500,1100)</box>",
        "<box>[[1, 2, 3, 4]]</box>",
        "<box>1 2 3 4</box>",
        "<loc0001><loc0002>",
        '{"bbox_2d": [1, 2, 3, 4]}',
        "<ref>1</ref> says (1,2),(3,4)",
    ],
)
def test_other_texts_stay(text):
    assert parsed("find", text).answer == text


def test_texts_without_a_picture_stay():
    assert parsed("what is this?", "<box>(1,2),(3,4)</box>", images=()).answer == "<box>(1,2),(3,4)</box>"


def test_names_in_the_question_belong_to_boxes_in_the_answer():
    sample = parsed("where is <ref>the cat</ref>?", "<box>(1,2),(3,4)</box>")
    assert has_marks(sample.turns[0].text)


def test_a_box_is_in_the_last_picture_before_it():
    sample = parsed("<image>a <box>(1,2),(3,4)</box> <image>b", "<box>(5,6),(7,8)</box>", images=("a.png", "b.png"))
    assert [box.image for turn in sample.turns for box in boxes_in(turn.text)] == [0, 1]
