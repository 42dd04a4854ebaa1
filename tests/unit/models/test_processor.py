"""Processors as published: half-filled, older than their model, or of another age than its tokenizer."""

import errno
import json
import shutil

import pytest
import torch
from PIL import Image
from tiny.rows import colour_rows, sample, tiny_plan
from transformers import AutoProcessor

from vlmtune.catalog import catalog
from vlmtune.data.encode import IGNORED, encode
from vlmtune.data.run_data import MeasuredRows
from vlmtune.data.types import ImageRef
from vlmtune.engine.step import forward_loss
from vlmtune.errors import VlmtuneError
from vlmtune.families import find_family, llava
from vlmtune.hub.source import open_model
from vlmtune.models.build import build_model
from vlmtune.models.processor import load_processor, save_processor

PICTURE = ImageRef(path="in memory")
LLAVA_FILES = [
    {},
    {"patch_size": 14},
    {"patch_size": 14, "vision_feature_select_strategy": "default"},
    {"patch_size": 16, "vision_feature_select_strategy": "full", "num_additional_image_tokens": 1},
]


@pytest.fixture
def changed(models, tmp_path):
    """A function that copies a tiny model and changes keys of one of its JSON files; None takes a key out."""

    def change(name: str, file_name: str, **values):
        folder = shutil.copytree(models(name).folder, tmp_path / "changed", dirs_exist_ok=True)
        path = folder / file_name
        whole = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({key: value for key, value in whole.items() if value is not None}))
        return folder

    return change


def encoded(folder, answer: str = "deep red"):
    plan = tiny_plan(folder)
    family = find_family(open_model(str(folder), None, folder).config, "model")
    row = sample("What colour?", answer, PICTURE)
    return encode(row, [Image.new("RGB", (60, 40), "red")], load_processor(plan), family)


@pytest.mark.parametrize("given", LLAVA_FILES, ids=str)
def test_llava_processors_of_any_age_count_as_the_model_does(given, changed, tmp_path):
    keys = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
    folder = changed("llava", "processor_config.json", **{**dict.fromkeys(keys), **given})
    row = encoded(folder)
    assert row.num_image_tokens == 4
    loss = forward_loss(build_model(tiny_plan(folder)), {**row.tensors, "labels": row.labels}, tiny_plan(folder))
    assert torch.isfinite(loss)
    load_processor(tiny_plan(folder)).save_pretrained(tmp_path / "saved")
    assert AutoProcessor.from_pretrained(tmp_path / "saved").num_additional_image_tokens == 1


def test_llava_counts_576_from_the_published_files():
    published = [entry for entry in catalog() if entry.family == "llava"]
    assert len(published) == 2
    for entry in published:
        config = json.loads((entry.folder / "config.json").read_text())
        assert llava.image_tokens(config, {}, 1024, 768) == 576
        written = json.loads((entry.folder / "processor_config.json").read_text())
        assert llava.processor_settings(config).items() <= written.items()


@pytest.mark.parametrize(
    ("vision", "strategy", "tokens"),
    [
        ({"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}, "full", 577),
        ({"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14}, "full", 729),
        ({}, "default", 576),
        ({"model_type": "clip_vision_model"}, "default", 49),
    ],
    ids=str,
)
def test_llava_counts_by_tower_and_strategy(vision, strategy, tokens):
    config = {"vision_config": vision, "vision_feature_select_strategy": strategy}
    assert llava.image_tokens(config, {}, 10, 10) == tokens


def test_pixtral_is_no_llava_whatever_its_config_says():
    entries = {entry.model_id: entry for entry in catalog() if entry.model_type == "llava"}
    taken = {
        name: llava.FAMILY.takes(json.loads((entry.folder / "config.json").read_text()))
        for name, entry in entries.items()
    }
    assert taken.pop("mistral-community/pixtral-12b") is False
    assert len(taken) == 2 and all(taken.values())
    assert llava.FAMILY.takes({"model_type": "llava"})


def test_llavas_published_template_lacks_the_end_and_the_labels_have_it(models):
    tiny = models("llava")
    published = AutoProcessor.from_pretrained(tiny.folder)
    messages = sample("What colour?", "deep red", PICTURE).messages()
    text = published.apply_chat_template(messages, tokenize=False)
    assert text == "USER: <image>\nWhat colour? ASSISTANT: deep red "
    row = encoded(tiny.folder)
    assert tiny.processor.tokenizer.decode(row.labels[row.labels != IGNORED]).strip() == "deep red</s>"
    assert tiny.processor.apply_chat_template(messages, tokenize=False) == text.rstrip() + "</s>"


def test_another_picture_size_than_the_towers_is_refused_before_the_model_loads(changed, tmp_path):
    side = {"height": 42, "width": 42}
    images = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 42}, "crop_size": side}
    folder = changed("llava", "processor_config.json", image_processor=images)
    plan, source = tiny_plan(folder), open_model(str(folder), None, folder)
    with pytest.raises(VlmtuneError, match="makes 9 image tokens of a picture for which the model has 4") as error:
        family = find_family(source.config, "changed")
        MeasuredRows(colour_rows(tmp_path)).lengths(load_processor(plan), family, plan, source)
    assert "preprocessor_config.json and config.json of the model do not fit together" in error.value.hint


@pytest.mark.parametrize("name", ["llava", "instructblip", "qwen3_vl"])
def test_an_image_token_beyond_the_embeddings_is_refused(name, models, changed):
    text = json.loads((models(name).folder / "config.json").read_text())["text_config"]
    folder = changed(name, "config.json", text_config={**text, "vocab_size": 100})
    with pytest.raises(VlmtuneError, match=r"has the id \d+, but the model has embeddings for 100 tokens"):
        load_processor(tiny_plan(folder))


@pytest.mark.parametrize(("name", "key"), [("llava", "image_token_index"), ("qwen2_vl", "image_token_id")])
def test_another_image_token_than_the_models_is_refused(name, key, changed):
    folder = changed(name, "config.json", **{key: 7})
    with pytest.raises(VlmtuneError, match=r"has the id \d+ in the tokenizer, 7 in config.json"):
        load_processor(tiny_plan(folder))


def test_instructblip_as_published(changed):
    """Its processor_config.json names the class for videos, and the image processor has its own file."""
    folder = changed("instructblip", "processor_config.json")
    whole = json.loads((folder / "processor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(whole["image_processor"]))
    named = {"num_query_tokens": 4, "processor_class": "InstructBlipVideoProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(named))
    row = encoded(folder)
    assert row.num_image_tokens == 4


@pytest.mark.parametrize("weights", ["checkpoint", "none"])
def test_instructblip_before_it_had_image_tokens(weights, models, changed):
    """No number of queries with the processor, no image token in config.json; the embeddings have room for it."""
    folder = changed("instructblip", "processor_config.json", num_query_tokens=None)
    folder = changed_config(folder, image_token_index=None)
    row = encoded(folder)
    assert row.num_image_tokens == 4
    model = build_model(tiny_plan(folder), weights=weights)
    assert model.config.image_token_index == models("instructblip").source.config["image_token_index"]
    if weights == "checkpoint":
        whole = build_model(models("instructblip").plan)
        batch = {**row.tensors, "labels": row.labels}
        assert torch.equal(*(forward_loss(m.eval(), batch, models("instructblip").plan) for m in (model, whole)))


def changed_config(folder, **values):
    path = folder / "config.json"
    whole = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in whole.items() if value is not None}))
    return folder


def test_instructblips_saved_processor_is_whole(models, tmp_path):
    models("instructblip").processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    rows = [sample("What colour is this?", "red", PICTURE)]
    made = [
        encode(rows[0], [Image.new("RGB", (60, 40), "red")], processor, models("instructblip").family).tensors
        for processor in (models("instructblip").processor, again)
    ]
    assert made[0].keys() == made[1].keys() and len(made[0]) == 5
    assert all(torch.equal(made[0][key], made[1][key]) for key in made[0])
    assert again.qformer_tokenizer.model_max_length == 512


def test_a_full_disk_is_told_as_one_where_tokenizers_raises_the_class_of_all_errors(models, tmp_path):
    (tmp_path / "tokenizer.json").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as told:
        save_processor(models("llava").processor, tmp_path)
    assert told.value.errno == errno.ENOSPC
