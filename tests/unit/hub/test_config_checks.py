"""config.json files that no model has: one message, in no time, before anything is built."""

import json
import os
from pathlib import Path

import pytest

from vlmtune.catalog import catalog
from vlmtune.errors import VlmtuneError
from vlmtune.hub.config_checks import refuse_absurd
from vlmtune.hub.source import open_model

LLAVA = {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "image_token_index": 32000,
    "text_config": {"hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 32064},
    "vision_config": {"hidden_size": 1024, "image_size": 336, "depths": [2, 2]},
}


def opened(tmp_path, text: str):
    (tmp_path / "config.json").write_text(text)
    return open_model(str(tmp_path), None, tmp_path)


def changed(section: str, key: str, value) -> str:
    return json.dumps({**LLAVA, section: {**LLAVA[section], key: value}})


def test_a_folder_has_no_revisions(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAVA))
    with pytest.raises(VlmtuneError, match=r"model\.revision: .* is a folder, which has no revisions"):
        open_model(str(tmp_path), "main", tmp_path)


def test_every_config_of_the_catalogue_passes():
    paths = [entry.folder / "config.json" for entry in catalog()]
    assert len(paths) >= 30
    for path in paths:
        refuse_absurd(json.loads(path.read_text()), path)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("text_config", "num_hidden_layers", 10**9),
        ("vision_config", "depth", 5000),
        ("text_config", "hidden_size", 10**9),
        ("text_config", "vocab_size", -(10**9)),
        ("text_config", "intermediate_size", float("nan")),
        ("text_config", "head_dim", "128"),
        ("vision_config", "depths", [2, 10**9]),
    ],
)
def test_an_absurd_size_is_named(tmp_path, section, key, value):
    with pytest.raises(VlmtuneError, match=rf"config\.json: {section}\.{key} is .*: no model has that"):
        opened(tmp_path, changed(section, key, value))


@pytest.mark.parametrize(
    "text", ['{"model_type": "lla', "[1]", "", "\ufeff{", '{"a": ' + "9" * 5000 + "}", "[" * 10**5]
)
def test_a_config_that_is_cut_off_or_no_json(tmp_path, text):
    with pytest.raises(VlmtuneError, match="is not JSON|is not a JSON object"):
        opened(tmp_path, text)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "config.json").write_bytes(b'{"model_type": "\xff"}')
    with pytest.raises(VlmtuneError, match="is not JSON"):
        open_model(str(tmp_path), None, tmp_path)


def test_a_text_only_model_is_said_to_be_one(tmp_path):
    text = json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096})
    with pytest.raises(VlmtuneError, match="is of a text-only model: LlamaForCausalLM"):
        opened(tmp_path, text)


@pytest.mark.parametrize("config", [{**LLAVA, "text_config": [1]}, {**LLAVA, "model_type": ["llava"]}])
def test_sections_of_the_wrong_kind(tmp_path, config):
    with pytest.raises(VlmtuneError, match=r"(text_config|model_type) is damaged"):
        opened(tmp_path, json.dumps(config))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_attn_implementation", "evil/kernel"),
        ("attn_implementation", "evil/kernel@main:attention"),
        ("_experts_implementation", "evil/experts"),
        ("architecture", "hf-hub:evil/tower"),
        ("architecture", "local-dir:tower"),
    ],
)
@pytest.mark.parametrize("section", ["vision_config", "text_config"])
def test_code_of_another_place_is_refused(tmp_path, section, key, value):
    """The kernels package would download and run it where it is installed, and timm build a model of another folder."""
    with pytest.raises(VlmtuneError, match=rf"config\.json: {section}\.{key} asks for code from elsewhere"):
        opened(tmp_path, changed(section, key, value))
    with pytest.raises(VlmtuneError, match=rf"config\.json: {key} asks for code from elsewhere"):
        opened(tmp_path, json.dumps({**LLAVA, key: value}))


@pytest.mark.parametrize("value", ["sdpa", "eager", "flash_attention_2", None])
def test_kinds_of_attention_that_saved_models_name_pass(tmp_path, value):
    assert opened(tmp_path, json.dumps({**LLAVA, "_attn_implementation": value}))


def test_the_processor_class_of_a_processor_config_is_kept(tmp_path):
    """Pixtral has the model_type of LLaVA: only the class says how it counts image tokens."""
    from vlmtune.hub.source import open_model

    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    (tmp_path / "processor_config.json").write_text(
        '{"processor_class": "PixtralProcessor", "image_processor": {"patch_size": 16}}'
    )
    found = open_model(str(tmp_path), None, tmp_path).preprocessor
    assert found == {"processor_class": "PixtralProcessor", "patch_size": 16}


@pytest.mark.parametrize("kind", ["a pipe", "a device"])
def test_a_config_that_never_ends_is_not_read(tmp_path, kind):
    path = tmp_path / "config.json"
    os.mkfifo(path) if kind == "a pipe" else path.symlink_to("/dev/zero")
    with pytest.raises(VlmtuneError, match=rf"config\.json is {kind}, not a regular file"):
        open_model(str(tmp_path), None, Path())
