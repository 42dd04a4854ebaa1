"""Texts, images and labels of Qwen-VL: the official ids, 256 slots an image, everything but answers masked."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny.rows import sample, tiny_plan
from transformers import AutoProcessor

from vlmtune.catalog import find_entry
from vlmtune.data.encode import IGNORED, encode
from vlmtune.data.types import ImageRef, Sample, Turn
from vlmtune.errors import VlmtuneError
from vlmtune.models.build import family_of
from vlmtune.models.processor import load_processor, turn_end_id
from vlmtune.models.qwen_vl import QwenVLProcessor

START, END, SLOT = 151_857, 151_858, 151_859
PICTURE = re.compile(r"(Picture \d+: <img>.*?</img>\n)")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, tiktoken_file):
    """Config and tokenizer files as published."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copy(find_entry("Qwen/Qwen-VL-Chat").folder / "config.json", folder)
    shutil.copy(tiktoken_file, folder)
    auto_map = {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]}
    tokenizer = {"model_max_length": 8192, "tokenizer_class": "QWenTokenizer", "auto_map": auto_map}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(scope="module")
def processor(checkout) -> QwenVLProcessor:
    return QwenVLProcessor.from_pretrained(checkout)


def messages_of(turns) -> list[dict]:
    """The official conversation as chat messages: what names a picture becomes a picture."""
    return [
        {
            "role": turn["from"],
            "content": [
                {"type": "image"} if PICTURE.fullmatch(part) else {"type": "text", "text": part}
                for part in PICTURE.split(turn["value"])
                if part
            ],
        }
        for turn in turns
    ]


def with_slots(ids: list[int]) -> list[int]:
    """Official ids with slots in place of the bytes of the picture's name."""
    ids = list(ids)
    for place in [index for index, token in enumerate(ids) if token == START]:
        ids[place + 1 : place + 257] = [SLOT] * 256
    return ids


def blank() -> Image.Image:
    return Image.new("RGB", (60, 40), "teal")


@pytest.mark.parametrize("number", [0, 1])
def test_conversations_have_the_official_ids(processor, cases, number):
    turns = [turn for turn in cases["sft"][number]["conversations"] if turn["value"] != "dropped"]
    text = processor.apply_chat_template(messages_of(turns), tokenize=False)
    images = [blank()] * text.count("<imgpad>") or None
    output = processor(text=text, images=images, return_tensors="pt")
    assert output["input_ids"][0].tolist() == with_slots(cases["sft"][number]["input_ids"])
    assert output["attention_mask"].all()


@pytest.mark.parametrize("number", [0, 1])
def test_labels_are_the_official_ones_within_answers(processor, checkout, cases, number):
    """The official script also learns the marks of every turn and the line break after an answer; this does not."""
    case = cases["sft"][number]
    turns = [turn for turn in case["conversations"] if turn["value"] != "dropped"]
    parts = [
        Turn(turn["from"], tuple(ImageRef(path="in memory") if PICTURE.fullmatch(p) else p for p in split if p))
        for turn in turns
        for split in [PICTURE.split(turn["value"])]
    ]
    row = Sample(tuple(parts), "rows.jsonl:1")
    encoded = encode(row, [blank()] * len(row.images), processor, family_of(tiny_plan(checkout)))
    assert encoded.tensors["input_ids"][0].tolist() == with_slots(case["input_ids"])
    labels = encoded.labels[0].tolist()
    assert [token for token in labels if token != IGNORED] == processor.tokenizer(turns[-1]["value"] + "<|im_end|>")[
        "input_ids"
    ]
    assert all(mine in (IGNORED, theirs) for mine, theirs in zip(labels, case["labels"], strict=True))
    assert encoded.num_image_tokens == 256 * len(row.images)


def test_prompts_have_the_official_ids(processor, cases):
    raw = cases["make_context"]["raw"]
    text = PICTURE.sub("Picture 1: <img><imgpad></img>\n", raw)
    history = [
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "a1"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hi"}]},
    ]
    assert processor.apply_chat_template(history, tokenize=False, add_generation_prompt=True) == text
    ids = processor(text=text, images=blank(), return_tensors="pt")["input_ids"][0].tolist()
    assert ids == with_slots(cases["make_context"]["ids"])


def test_pictures_are_numbered_through_the_conversation(processor):
    picture = {"type": "image"}
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [picture, picture, {"type": "text", "text": "compare"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "same"}]},
        {"role": "user", "content": [picture, {"type": "text", "text": "and this?"}]},
    ]
    text = processor.apply_chat_template(history, tokenize=False)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nPicture 1: <img><imgpad></img>\n"
        "Picture 2: <img><imgpad></img>\ncompare<|im_end|>\n<|im_start|>assistant\nsame<|im_end|>\n"
        "<|im_start|>user\nPicture 3: <img><imgpad></img>\nand this?<|im_end|>\n"
    )
    output = processor(text=text, images=[blank()] * 3, return_tensors="pt")
    ids = output["input_ids"][0]
    assert output["pixel_values"].shape == (3, 3, 448, 448)
    for start, end in zip((ids == START).nonzero(), (ids == END).nonzero(), strict=True):
        assert end - start == 257 and (ids[start + 1 : end] == SLOT).all()


def test_pixels_are_those_of_pil(processor, oracle_folder):
    image = Image.open(oracle_folder / "img_a.png")
    squashed = np.asarray(image.convert("RGB").resize((448, 448), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    mean = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
    std = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
    expected = torch.from_numpy((squashed - mean) / std).permute(2, 0, 1)
    assert torch.equal(processor.image_processor(image, return_tensors="pt")["pixel_values"][0], expected)
    for mode in ("L", "RGBA", "P"):
        assert processor.image_processor(image.convert(mode), return_tensors="pt")["pixel_values"].shape[1] == 3


def test_saved_processor_is_the_same(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is QwenVLProcessor and again.chat_template == processor.chat_template
    text = "Picture 1: <img><imgpad></img>\n<ref>été</ref> 123"
    mine, other = (p(text=text, images=blank(), return_tensors="pt") for p in (processor, again))
    assert mine.keys() == other.keys() and all(torch.equal(mine[key], other[key]) for key in mine)
    ids = again.tokenizer("<box>(1,2)</box><|im_end|>")["input_ids"]
    assert again.tokenizer.decode(ids, skip_special_tokens=True) == "<box>(1,2)</box>"


@pytest.fixture
def quick(monkeypatch, qwen_tokenizer):
    """The vocabulary is not converted again."""
    monkeypatch.setattr("vlmtune.models.qwen_vl.processing.build_tokenizer", lambda path: qwen_tokenizer)


def test_a_checkout_needs_no_code_of_its_own(checkout, quick):
    processor = load_processor(tiny_plan(checkout))
    assert type(processor) is QwenVLProcessor
    assert turn_end_id(processor) == 151_645


def test_the_input_size_is_that_of_the_config(tmp_path, tiktoken_file, quick):
    shutil.copy(tiktoken_file, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen", "visual": {"image_size": 224}}')
    assert AutoProcessor.from_pretrained(tmp_path).image_processor.size == {"height": 224, "width": 224}


def test_a_folder_without_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen", "visual": {"image_size": 224}}')
    with pytest.raises(VlmtuneError, match="has no qwen.tiktoken: there is no tokenizer"):
        QwenVLProcessor.from_pretrained(tmp_path)


def test_grounding_answers_are_learned_whole(processor, checkout):
    answer = "<ref>the dress</ref><box>(588,499),(725,789)</box>"
    row = sample("Find it.", answer, ImageRef(path="in memory"))
    encoded = encode(row, [blank()], processor, family_of(tiny_plan(checkout)))
    learned = encoded.labels[encoded.labels != IGNORED]
    assert processor.tokenizer.decode(learned) == answer + "<|im_end|>"


@pytest.mark.parametrize("mark", ["<imgpad>", "<img>", "</img>", "Picture 1: <img>a.png</img>\n"])
@pytest.mark.parametrize("num_images", [0, 1])
def test_image_marks_in_texts_are_refused_by_row(processor, checkout, mark, num_images):
    """Rows in the original's own way of naming pictures would be trained without them."""
    family = family_of(tiny_plan(checkout))
    row = sample(f"What is {mark} here?", "a cat", *[ImageRef(path="in memory")] * num_images)
    with pytest.raises(VlmtuneError, match="rows.jsonl:1: a text holds <"):
        encode(row, [blank()] * num_images, processor, family)


@pytest.mark.parametrize(("found", "wanted"), [(0, 1), (2, 1), (1, 0)])
def test_slots_and_images_are_counted(processor, found, wanted):
    with pytest.raises(ValueError, match="<imgpad>"):
        processor(text="<imgpad> " * found + "q", images=[blank()] * wanted or None)


def test_special_strings_in_texts_are_special_tokens(processor):
    """As in the original: grounding marks are written this way."""
    ids = processor(text="a<|im_end|>b<|extra_0|><box>", return_tensors="pt")["input_ids"][0].tolist()
    assert ids == [64, 151_645, 65, 151_646, 151_853]
