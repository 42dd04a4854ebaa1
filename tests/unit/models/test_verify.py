"""What is in memory after loading is what the files hold, and files that do not fit the config are refused before."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TINY, save_tiny
from tiny.rows import tiny_plan

from vlmtune.errors import VlmtuneError
from vlmtune.hub.shards import stored_tensors
from vlmtune.models import build
from vlmtune.models.verify import refuse_other_numbers

METHODS = {
    "nf4": {"method": "qlora"},
    "fp4": {"method": "qlora", "quantization": {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}},
    "16 bits": {"method": "lora"},
}
DAMAGED = ("self_attn.q_proj.weight", "layernorm.weight", "norm1.weight", "embed_tokens.weight", "lm_head.weight")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A function that returns the tiny checkpoint of a model type."""
    root = tmp_path_factory.mktemp("models")

    def get(kind: str):
        return root / kind if (root / kind).is_dir() else save_tiny(kind, root / kind)

    return get


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder("llava"), tmp_path / "llava")


@pytest.mark.parametrize("kind", TINY)
def test_every_kind_of_tensor_is_compared(folder, kind):
    model = build.load_base(tiny_plan(folder(kind)))
    stored = stored_tensors(folder(kind))
    comparison = refuse_other_numbers(model, stored, folder(kind))
    assert len(comparison.compared) >= 25
    parts = {build.family_of(tiny_plan(folder(kind))).part_of(name) for name in comparison.compared}
    assert parts >= {"text", "vision", "projector"}
    allowed = 4 if kind == "qwen" else 0  # c_attn becomes q, k and v
    assert len(comparison.not_comparable) == allowed


@pytest.mark.parametrize("training", METHODS.values(), ids=METHODS)
def test_a_tensor_that_loading_has_replaced_is_found(folder, training):
    model = build.load_base(tiny_plan(folder("llava"), training=training))
    stored = stored_tensors(folder("llava"))
    names = [name for name, _ in model.named_parameters() if name.endswith(DAMAGED)]
    assert len(names) >= 5
    compared = refuse_other_numbers(model, stored, folder("llava")).compared
    for name in set(names) & set(compared):
        parameter = model.get_parameter(name)
        before = parameter.data.clone()
        parameter.data = before.flip(0) + 1 if before.dtype == torch.uint8 else torch.randn_like(before) * 0.02
        with pytest.raises(VlmtuneError, match=f"{name} in memory is not what"):
            refuse_other_numbers(model, stored, folder("llava"))
        parameter.data = before


def test_an_initialisation_that_writes_past_the_guard_is_caught(folder, monkeypatch):
    """transformers 5 calls `_init_weights` on modules with buffers; one that writes in place destroys the weights."""
    from transformers import LlavaForConditionalGeneration

    load = LlavaForConditionalGeneration.from_pretrained.__func__

    def destroy(cls, *args, **kwargs):
        model, report = load(cls, *args, **kwargs)
        for name, parameter in model.named_parameters():
            if name.endswith("o_proj.weight"):
                parameter.data.normal_()
        return model, report

    monkeypatch.setattr(LlavaForConditionalGeneration, "from_pretrained", classmethod(destroy))
    with pytest.raises(VlmtuneError, match="o_proj.weight in memory is not what .* holds"):
        build.load_base(tiny_plan(folder("llava"), training={"method": "lora"}))


def test_few_numbers_are_read_of_each_tensor(folder, monkeypatch):
    from vlmtune.models import verify

    read = []
    first_numbers = verify._first_numbers
    monkeypatch.setattr(verify, "_first_numbers", lambda *args: read.append(first_numbers(*args)) or read[-1])
    build.load_base(tiny_plan(folder("llava")))
    assert len(read) >= 25 and max(len(numbers) for numbers in read) <= verify.SAMPLED_NUMBERS


@pytest.mark.parametrize(
    ("section", "key", "value"), [("text_config", "intermediate_size", 192), ("vision_config", "num_hidden_layers", 4)]
)
def test_weights_of_another_config_are_refused_before_loading(copy, monkeypatch, section, key, value):
    monkeypatch.setattr(build.AutoModelForImageTextToText, "from_pretrained", None)
    config = json.loads((copy / "config.json").read_text())
    config[section][key] = value
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(VlmtuneError, match="config.json and weights do not belong together"):
        build.load_base(tiny_plan(copy))


def test_a_missing_tensor_is_named_before_loading(copy, monkeypatch):
    monkeypatch.setattr(build.AutoModelForImageTextToText, "from_pretrained", None)
    tensors = load_file(copy / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight"))
    del tensors[name]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(VlmtuneError, match=r"lack 1 tensors of the model.*layers\.1\.mlp\.up_proj\.weight"):
        build.load_base(tiny_plan(copy))


@pytest.mark.parametrize("dtype", ["I32", "U32", "BOOL", "I64"])
def test_whole_numbers_in_place_of_weights_are_refused_before_loading(copy, monkeypatch, dtype):
    """The bytes of a weight under another name: the run had a loss of 2.6e10, and ended well."""
    monkeypatch.setattr(build.AutoModelForImageTextToText, "from_pretrained", None)
    sizes = {"I32": 1, "U32": 1, "BOOL": 4, "I64": 0.5}
    name = _relabelled(copy / "model.safetensors", "q_proj.weight", dtype, sizes[dtype])
    with pytest.raises(VlmtuneError, match=rf"model\.safetensors has {name} as {dtype}, where the model has fractions"):
        build.load_base(tiny_plan(copy))


def _relabelled(path, ending: str, dtype: str, times: float) -> str:
    """Give the first weight with this ending another format in the header; its bytes stay."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    name = next(name for name in header if name.endswith(ending))
    rows, columns = header[name]["shape"]
    header[name].update(dtype=dtype, shape=[rows, int(columns * times)])
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[start:])
    return name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_named(copy, value):
    tensors = load_file(copy / "model.safetensors")
    for name in tensors:
        if name.endswith("q_proj.weight"):
            tensors[name][0, 0] = value
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(VlmtuneError, match=r"model\.safetensors: \S*q_proj\.weight holds what is no number"):
        build.load_base(tiny_plan(copy))


@pytest.mark.parametrize("text", ['{"eos_token_id": ' + "9" * 5_000 + "}", "[" * 100_000, "{"])
def test_a_broken_generation_config_is_one_message(copy, text):
    (copy / "generation_config.json").write_text(text)
    try:
        build.load_base(tiny_plan(copy))
    except VlmtuneError as error:
        assert f"the model {copy} cannot be loaded" in error.message and error.hint


def test_a_head_that_is_the_embedding_need_not_be_in_the_files(folder):
    stored = stored_tensors(folder("qwen2_vl"))
    assert not any("lm_head" in name for name in stored)
    build.check_checkpoint(tiny_plan(folder("qwen2_vl")))
