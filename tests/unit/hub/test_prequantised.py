"""Models that are quantised already: 4 bits of bitsandbytes are read from the names of tensors, others are refused."""

import json

import pytest
from tiny.packed import change_config, save_packed

from vlmtune.errors import VlmtuneError
from vlmtune.hub.prequantised import prequantised_of, refuse_silent
from vlmtune.hub.shards import StoredTensor
from vlmtune.hub.source import open_model

LOCATION = "Qwen/Qwen2.5-VL-7B-Instruct-AWQ"
OTHERS = [
    ({"quant_method": "awq", "bits": 4, "group_size": 128}, "AWQ"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "GPTQ"),
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "FP8"),
    ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes, 8 bits"),
    (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_storage": "bfloat16"},
        "bitsandbytes, 4 bits packed as bfloat16",
    ),
    ({"bits": 4, "group_size": 64}, "MLX"),
    ({"quant_method": "tomorrows"}, "tomorrows"),
    ({}, "its config.json does not say how"),
    ("damaged", "its config.json does not say how"),
]


@pytest.fixture(autouse=True)
def _no_files(monkeypatch):
    """Nothing but config.json is asked for."""
    monkeypatch.setattr("vlmtune.hub.prequantised.tensor_names", None)


@pytest.mark.parametrize(("said", "how"), OTHERS)
@pytest.mark.parametrize("place", ["config", "text_config"])
def test_what_cannot_be_tuned_is_named_from_its_config_alone(said, how, place):
    whole = {"quantization_config": said}
    with pytest.raises(VlmtuneError) as error:
        prequantised_of(whole if place == "config" else {"text_config": whole}, LOCATION, "commit")
    assert error.value.message.startswith(f"model.name: {LOCATION} is already quantised ({how})")
    assert "such as Qwen/Qwen2.5-VL-7B-Instruct:" in error.value.hint


def test_a_folder_is_refused_by_its_own_name(tmp_path):
    folder = tmp_path / "mine-awq"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "quantization_config": OTHERS[0][0]}))
    with pytest.raises(VlmtuneError, match=r"mine-awq is already quantised \(AWQ\)") as error:
        open_model(str(folder), None, tmp_path)
    assert "the 16-bit model that it was made of" in error.value.hint


def test_a_model_in_16_bits_tells_of_nothing():
    assert prequantised_of({"model_type": "llava", "text_config": {}}, LOCATION, None) is None
    assert prequantised_of({"quantization_config": None}, LOCATION, None) is None


def test_the_files_say_how_and_where(models, tmp_path, monkeypatch):
    from vlmtune.hub.download import tensor_names

    monkeypatch.setattr("vlmtune.hub.prequantised.tensor_names", tensor_names)
    skip = ("lm_head", "model.vision_tower")
    folder = save_packed(models("llava").folder, tmp_path / "packed", quant_type="fp4", double_quant=False, skip=skip)
    change_config(folder, lambda config: config["quantization_config"].update(bnb_4bit_quant_type="nf4"))
    found = open_model(str(folder), None, tmp_path).prequantised
    assert (found.quant_type, found.double_quant, len(found.packed)) == ("fp4", False, 16)
    assert found.packs("model.language_model") and found.packs("model.multi_modal_projector")
    assert not found.packs("model.vision_tower") and not found.packs("lm_head")


def test_weights_of_two_formats_are_refused(monkeypatch):
    names = [f"layer.{kind}.weight.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4")]
    monkeypatch.setattr("vlmtune.hub.prequantised.tensor_names", lambda location, revision: names)
    with pytest.raises(VlmtuneError, match="weights of several formats, fp4 and nf4"):
        prequantised_of({"quantization_config": {"load_in_4bit": True}}, LOCATION, None)


@pytest.mark.parametrize(
    ("name", "dtype", "how"),
    [
        ("layers.0.q_proj.qweight", "I32", "GPTQ or AWQ"),
        ("layers.0.q_proj.weight_packed", "I32", "compressed-tensors"),
        ("layers.0.q_proj.weight_scale_inv", "F32", "FP8"),
        ("layers.0.q_proj.weight", "F8_E4M3", "FP8"),
    ],
)
def test_files_of_other_formats_are_refused_where_config_json_is_silent(name, dtype, how, tmp_path):
    usual = StoredTensor(tmp_path, (4,), "BF16")
    refuse_silent({"layers.0.norm.weight": usual}, LOCATION)
    with pytest.raises(VlmtuneError) as error:
        refuse_silent({"layers.0.norm.weight": usual, name: StoredTensor(tmp_path, (4,), dtype)}, LOCATION)
    assert f"is already quantised ({how}, by the name or format of {name})" in error.value.message
    assert "name the 16-bit model" in error.value.hint


def test_mlx_says_it_in_a_key_of_its_own():
    with pytest.raises(VlmtuneError, match=r"is already quantised \(MLX\)"):
        prequantised_of({"quantization": {"group_size": 64, "bits": 4}}, LOCATION, None)
