"""Boxes are written as the model at hand writes them: a round trip for every convention, on every path of the data."""

import json
import pickle
import re

import pytest
from PIL import Image
from tiny import TINY
from tiny.rows import TinyModel

from vlmtune.data.boxes.marks import Box, boxes_in
from vlmtune.data.boxes.texts import marked
from vlmtune.data.boxes.writing import written
from vlmtune.data.checked import with_images_checked
from vlmtune.data.dataset import TuneDataset
from vlmtune.data.encode import IGNORED
from vlmtune.data.run_data import MeasuredRows
from vlmtune.data.samples import read_samples
from vlmtune.families import boxes as conventions
from vlmtune.families.boxes import THOUSANDTHS
from vlmtune.families.qwen2_vl import QWEN2_5_VL

SIZE_PX = (640, 480)
BOX = [64, 240, 320, 480]
ANSWERS = {
    "qwen": "<ref>the cat</ref>: <box>(100,500),(500,999)</box>",
    "qwen2_vl": "<|object_ref_start|>the cat<|object_ref_end|>: <|box_start|>(100,500),(500,999)<|box_end|>",
    "qwen2_5_vl": "the cat: [25, 84, 126, 168]",
    "paligemma": "the cat: <loc0512><loc0102><loc1023><loc0512>",
}
OF_OTHERS = "the cat: [100, 500, 500, 1000]"
KNOWN = [QWEN2_5_VL, *(one for one in vars(conventions).values() if isinstance(one, conventions.BoxConvention))]


@pytest.mark.parametrize("convention", KNOWN, ids=lambda one: one.name)
@pytest.mark.parametrize("numbers", [(0, 0, 640, 480), (13, 7, 301, 479), (0.5, 0.5, 1.5, 2.5), (320, 11)])
def test_a_round_trip_is_within_a_step(convention, numbers):
    seen_px = (252, 168)
    text = convention.box(Box(0, numbers, in_pixels=True).shares(SIZE_PX), seen_px)
    steps = seen_px if convention.input_size_px else (convention.steps, convention.steps)
    if found := list(boxes_in(marked(text, 0))):
        shares = found[0].numbers
    else:
        shares = [int(one) / steps[place % 2] for place, one in enumerate(re.findall(r"\d+", text))]
        if text.startswith("<loc"):
            shares = [shares[1], shares[0]]
    for place, (share, number) in enumerate(zip(shares, numbers, strict=True)):
        side_px = SIZE_PX[place % 2]
        assert abs(share * side_px - number) <= 1.01 * side_px / steps[place % 2]


def test_every_convention_has_a_name_of_its_own():
    assert len({one.name for one in KNOWN}) == len(KNOWN)


@pytest.fixture(params=[False, True], ids=["in memory", "a table"])
def samples(request, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param:
        monkeypatch.setattr("vlmtune.data.samples.LARGE_BYTES", 1)
    Image.new("RGB", SIZE_PX, "red").save(tmp_path / "a.png")
    rows = [
        {"image": "a.png", "question": "<image>find <ref-object>", "answer": "<ref-object>: <bbox>",
         "objects": {"ref": ["it", "the cat"], "bbox": [BOX]}},
        {"image": "a.png", "question": "what is this?", "answer": "no box"},
        {"image": "a.png", "question": "find it", "answer": "<ref>the cat</ref>: <box>(100,500),(500,1000)</box>"},
    ]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    checked = with_images_checked(read_samples(path))
    assert checked.bad_rows == []
    return checked.samples


@pytest.mark.parametrize("model_type", TINY)
def test_every_family_learns_its_own_boxes(model_type, samples, tmp_path):
    model = TinyModel(model_type, tmp_path)
    rows = TuneDataset(samples, model.processor, model.family, model.plan)
    expected = ANSWERS.get(model_type, OF_OTHERS)
    for index, answer in ((0, expected), (1, "no box"), (2, expected)):
        assert rows.samples[index].answer == answer
        row = rows[index]
        learned = row.labels[row.labels != IGNORED].tolist()
        assert answer in model.processor.tokenizer.decode(learned, skip_special_tokens=False)
    lengths = MeasuredRows(samples).lengths(model.processor, model.family, model.plan, model.source)
    unmeasured = {rows[index].labels.shape[1] - total for index, total in enumerate(lengths.total.tolist())}
    assert unmeasured == {int(model_type == "paligemma")}  # the tiny tokenizer leaves the start token to the processor


def test_pixels_are_those_after_the_picture_was_shrunk(samples, tmp_path):
    model = TinyModel("qwen2_5_vl", tmp_path)
    plan = model.plan.__class__(**{**vars(model.plan), "image_size": 112})
    assert written(samples, plan, model.processor, model.family)[0].answer == "the cat: [11, 42, 56, 84]"


def test_written_rows_go_to_other_processes(samples, tmp_path):
    model = TinyModel("qwen2_5_vl", tmp_path)
    rows = written(samples, model.plan, model.processor, model.family)
    assert pickle.loads(pickle.dumps(rows))[0].answer == rows[0].answer == ANSWERS["qwen2_5_vl"]
    assert written(rows, model.plan, model.processor, model.family) is rows
    assert [sample.answer for sample in rows[0:2]] == [ANSWERS["qwen2_5_vl"], "no box"]


def test_text_tokens_of_one_convention_are_not_taken_for_those_of_another(samples, tmp_path):
    for model_type in ("qwen2_vl", "qwen2_5_vl"):
        model = TinyModel(model_type, tmp_path)
        lengths = MeasuredRows(samples).lengths(model.processor, model.family, model.plan, model.source)
        rows = TuneDataset(samples, model.processor, model.family, model.plan)
        assert lengths.text[0] == rows[0].num_text_tokens


def test_a_model_without_a_convention_writes_thousandths(tmp_path):
    model = TinyModel("gemma3", tmp_path)
    assert model.plan.boxes == THOUSANDTHS.name
    assert model.family.box_convention("of a later version") is THOUSANDTHS
