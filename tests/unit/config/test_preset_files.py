"""The shipped presets: complete, in order, and ready to start from."""

from itertools import pairwise

import pytest

from vlmtune.config.load import load_config
from vlmtune.config.presets import ALIASES, FOLDER, document, find, names, starting_config
from vlmtune.errors import VlmtuneError


def test_names_are_in_the_order_of_the_cards():
    assert names() == ("6gb", "8gb", "12gb", "16gb", "24gb", "48gb")
    assert len(list(FOLDER.iterdir())) == 6
    assert set(ALIASES.values()) <= set(names())


@pytest.mark.parametrize("name", names())
def test_a_preset_is_a_partial_config_with_its_card_model_and_policy(name, tmp_path):
    preset = find(name)
    assert preset.card.startswith(f"{name.removesuffix('gb')} GB (")
    assert preset.model.startswith("Qwen/")
    assert "# Policy: " in preset.text
    assert "model" not in preset.values and "train_path" not in preset.values["data"]
    assert not document(name).problems
    training = preset.values["training"]
    if training["method"] == "qlora":
        assert training["quantization"]["load_in_4bit"]


def test_larger_cards_never_get_less():
    for small, large in pairwise(find(name).values for name in names()):
        for key in ("max_length", "image_size"):
            assert small["data"][key] <= large["data"][key]
        assert small["training"]["lora"]["rank"] <= large["training"]["lora"]["rank"]
        assert small["training"]["batch_size"] <= large["training"]["batch_size"]


@pytest.mark.parametrize("name", names())
def test_a_starting_config_means_the_same_as_naming_the_preset(name, tmp_path):
    (tmp_path / "copied.yaml").write_text(starting_config(name, "my-run"))
    (tmp_path / "named.yaml").write_text(
        f"preset: {name}\nexperiment_name: my-run\n"
        f"model: {{name: {find(name).model}}}\ndata: {{train_path: train.jsonl}}\n"
    )
    copied = load_config(tmp_path / "copied.yaml").config
    named = load_config(tmp_path / "named.yaml").config
    assert copied == named.model_copy(update={"preset": None})
    assert find(name).text.partition("\n\n")[0] in starting_config(name, "my-run"), "the comments come along"


def test_unknown_presets():
    with pytest.raises(VlmtuneError) as caught:
        find("ultra_low")
    assert caught.value.message == "preset ultra_low is unknown"
    assert caught.value.hint == "did you mean ultra_low_memory? there are 6gb, 8gb, 12gb, 16gb, 24gb, 48gb"
    with pytest.raises(VlmtuneError) as caught:
        find("../../etc/passwd")
    assert caught.value.hint == "there are 6gb, 8gb, 12gb, 16gb, 24gb, 48gb"
    assert find("8GB").name == "8gb"
