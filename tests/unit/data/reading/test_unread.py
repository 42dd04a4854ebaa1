"""What looks like an image or a turn and is not used is refused; what says where a row comes from is counted."""

import pytest

from vlmtune.data.reading.formats import parse_row
from vlmtune.data.reading.image_refs import ImageRules
from vlmtune.data.types import RowProblem

RULES = ImageRules("/data", allow_urls=False)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(60)
TEXT = {"question": "q", "answer": "a"}
SEEN = {"image": "dir/a.png", **TEXT}


def problem_of(row: dict) -> tuple[str, str | None]:
    with pytest.raises(RowProblem) as raised:
        parse_row(row, "rows.jsonl:1", RULES)
    return raised.value.problem, raised.value.hint


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_0", "a.png"), ("image_1", {"bytes": PNG, "path": None}), ("photo", "a.png"), ("photos", ["a.png"]),
        ("photo_file", "x/1"), ("screenshot", b"raw"), ("Photo", "a.png"),
        ("pic1", "data:image/png;base64,AAAA"), ("view_left", "b.jpg"), ("thumb", PNG), ("pages", ["1.tif", "2.tif"]),
        ("blob", {"bytes": PNG}), ("imagefile", "a"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("row", [TEXT, {"image": "other.png", **TEXT}], ids=["no image", "another image"])
def test_what_looks_like_an_image_is_refused(name, value, row):
    problem, hint = problem_of({**row, name: value})
    assert problem == f"{name!r} looks like an image, and is not used" and "images" in hint


def test_an_address_without_an_image_is_refused():
    for name in ("image_url", "photo_url", "img_uri"):
        problem, _ = problem_of({**TEXT, name: "https://example.org/a"})
        assert problem == f"{name!r} looks like an image, and is not used"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("videos", ["v.mp4"]), ("video", "v"), ("audios", ["a.wav"]), ("audio_path", "a"), ("clip", "x/v.webm"),
        ("speech", {"bytes": b"RIFF"}),
    ],
)  # fmt: skip
def test_other_media_are_refused(name, value):
    problem, hint = problem_of({**SEEN, name: value})
    assert problem == f"{name!r} holds a video or sound, and only images are read" and hint


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("history", [["q", "a"]]), ("conversation", [{"from": "human", "value": "q"}]), ("dialog", "q: a"),
        ("chosen", [{"role": "assistant", "content": "a"}]), ("texts", [{"user": "q", "assistant": "a"}]),
    ],
)  # fmt: skip
def test_what_looks_like_turns_is_refused(name, value):
    problem, hint = problem_of({**SEEN, name: value})
    assert problem == f"{name!r} looks like turns, and is not used" and "messages" in hint


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"weight": 0}, "weight of the whole row is 0"), ({"weight": 0.3}, "weight of the whole row is 0.3"),
        ({"train": False}, "train of the whole row is False"), ({"loss": False}, "loss of the whole row is False"),
    ],
)  # fmt: skip
def test_a_row_that_should_count_less_is_refused(columns, problem):
    assert problem_of({**SEEN, **columns})[0] == problem


def test_two_conversations_are_refused():
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    problem, _ = problem_of({"messages": turns, "conversations": turns})
    assert problem == "messages and conversations could both be the conversation"


@pytest.mark.parametrize(
    "columns",
    [
        {"id": "x/17.png"}, {"source": "coco"}, {"image_id": 7}, {"image_width": 640}, {"videos": []}, {"audio": ""},
        {"history": []}, {"photo": None}, {"image_1": ""}, {"clip": 0.31}, {"figure": 3}, {"url": "https://x.org/b.jpg"},
        {"image_url": "https://x.org/b.jpg"}, {"file_name": "a.png"}, {"image_path": "other/a.png"}, {"weight": 1},
        {"train": True}, {"loss": 0.25}, {"image_caption": "a photo"}, {"objects": {"bbox": []}}, {"tags": ["a", "b"]},
        {"license": {"name": "x"}}, {"notes": [{"text": "x"}]},
    ],
    ids=str,
)  # fmt: skip
def test_what_says_nothing_is_counted_alone(columns):
    found = parse_row({**SEEN, **columns}, "rows.jsonl:1", RULES)
    assert found.sample == parse_row(SEEN, "rows.jsonl:1", RULES).sample
    assert found.unused_columns == {name for name, value in columns.items() if value is not None}


@pytest.mark.parametrize("name", ["file_name", "image_path", "photo_url", "img_path"])
def test_the_name_of_an_embedded_image_says_where_it_comes_from(name):
    found = parse_row({**TEXT, "image": {"bytes": PNG, "path": None}, name: "b.png"}, "rows.jsonl:1", RULES)
    assert found.unused_columns == {name} and len(found.sample.images) == 1


def test_the_filled_image_column_is_read():
    for row in ({"images": [], "image": "a.png", **TEXT}, {"image": "a.png", "image_path": "", **TEXT}):
        assert [ref.path for ref in parse_row(row, "rows.jsonl:1", RULES).sample.images] == ["/data/a.png"]


@pytest.mark.parametrize(
    "mark",
    [
        "<video>", "<audio>", "<image_1>", "<image1>", "<image-2>", "<ImageHere>", "<img>", "</img>", "<IMAGE_0>",
        "<|image_1|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|image|>", "<image_placeholder>",
        "<start_of_image>", "<image_soft_token>", "[IMG]", "[image]", "[img-1]", "<IMAGE>", "<image 1>", "<Image>",
    ],
)  # fmt: skip
def test_marks_of_other_tools_in_questions_are_refused(mark):
    for row in ({**SEEN, "question": f"{mark}What?"}, {**SEEN, "system": f"see {mark}"}):
        problem, hint = problem_of(row)
        assert f"holds {mark}, which stands for nothing here" in problem and "<image>" in hint


@pytest.mark.parametrize("text", ["a <b> c", "x[0] < y[image_index]", "<html><body>", "the <imaginary> part", "a[i]"])
def test_other_texts_are_questions(text):
    assert parse_row({**SEEN, "question": text}, "rows.jsonl:1", RULES).sample.turns[0].text == text


def test_answers_may_hold_tags():
    assert parse_row({**SEEN, "answer": "<video></video>"}, "rows.jsonl:1", RULES).sample.answer == "<video></video>"


@pytest.mark.parametrize("mark", ["<bbox>", "<ref-object>"])
def test_boxes_without_objects_are_refused(mark):
    for row in ({**SEEN, "question": f"find {mark}"}, {**SEEN, "answer": f"here: {mark}"}):
        assert f"holds {mark}, and the row has no objects" in problem_of(row)[0]
        parse_row({**row, "objects": {"ref": ["cat"], "bbox": [[1, 2, 3, 4]]}}, "rows.jsonl:1", RULES)


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ({"type": "text", "text": "q", "image": "b.png"}, "image"),
        ({"type": "image", "image": "b.png", "text": "q"}, "text"),
        ({"type": "image", "image": "b.png", "max_pixels": 9}, "max_pixels"),
        ({"type": "text", "text": "q", "weight": 0}, "weight"),
    ],
)
def test_keys_of_parts_that_are_not_read_are_refused(part, key):
    row = {"messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "a"}]}
    assert problem_of(row)[0] == f"turn 1 (user), part 1 has the key {key!r}, which is not known"


def test_indices_of_images_are_their_order():
    def row(*indices: int) -> dict:
        parts = [{"type": "image", "index": index, "text": None} for index in indices]
        user = {"role": "user", "content": [*parts, {"type": "text", "text": "q", "index": None}]}
        return {"images": ["a.png", "b.png"], "messages": [user, {"role": "assistant", "content": "a"}]}

    assert len(parse_row(row(0, 1), "rows.jsonl:1", RULES).sample.images) == 2
    problem, hint = problem_of(row(1, 0))
    assert problem == "the image with index 1 stands where the one with index 0 goes" and hint


def test_preferences_are_named():
    _, hint = problem_of({"image": "a.png", "question": "q", "chosen": "a", "rejected": "b"})
    assert "rename chosen to answer" in hint


def test_parts_of_tables_hold_empty_keys():
    parts = [{"type": "image", "image": "b.png", "text": None}, {"type": "text", "text": "q", "image": None}]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "a"}]}
    assert len(parse_row(row, "rows.jsonl:1", RULES).sample.images) == 1
