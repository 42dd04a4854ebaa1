"""Published files load as they are, every tensor where it belongs, also straight into 4 bits; saved files are alike."""

import json
import re
import shutil
import weakref
from dataclasses import replace

import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny.rows import tiny_plan
from transformers import AutoConfig, AutoModelForImageTextToText, core_model_loading

from vlmtune.catalog import find_entry
from vlmtune.errors import VlmtuneError
from vlmtune.families.qwen_vl import FAMILY
from vlmtune.models.build import build_model, load_base
from vlmtune.models.inventory import inventory
from vlmtune.models.qwen_vl import QwenVLConfig, QwenVLForConditionalGeneration

NAMES = {
    r"transformer\.wte": "model.language_model.embed_tokens",
    r"transformer\.ln_f": "model.language_model.norm",
    r"transformer\.visual": "model.visual",
    r"transformer\.h\.(\d+)\.ln_1": r"model.language_model.layers.\1.input_layernorm",
    r"transformer\.h\.(\d+)\.ln_2": r"model.language_model.layers.\1.post_attention_layernorm",
    r"transformer\.h\.(\d+)\.attn\.c_proj": r"model.language_model.layers.\1.self_attn.o_proj",
    r"transformer\.h\.(\d+)\.mlp\.w1": r"model.language_model.layers.\1.mlp.up_proj",
    r"transformer\.h\.(\d+)\.mlp\.w2": r"model.language_model.layers.\1.mlp.gate_proj",
    r"transformer\.h\.(\d+)\.mlp\.c_proj": r"model.language_model.layers.\1.mlp.down_proj",
}


def expected_tensors(file) -> dict[str, torch.Tensor]:
    """The file's tensors by their names in the model, by rules written apart from the model's own."""
    tensors = {}
    for name, tensor in load_file(file).items():
        if fused := re.fullmatch(r"transformer\.h\.(\d+)\.attn\.c_attn\.(weight|bias)", name):
            layer, kind = fused.groups()
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                tensors[f"model.language_model.layers.{layer}.self_attn.{part}_proj.{kind}"] = piece
            continue
        for theirs, ours in NAMES.items():
            renamed, found = re.subn("^" + theirs, ours, name)
            if found:
                break
        tensors[renamed] = tensor
    return tensors


def shards_of(folder, target, num=3):
    """Write the checkpoint in several files, as it is published."""
    tensors = load_file(folder / "model.safetensors")
    weight_map = {}
    for index in range(num):
        name = f"model-{index + 1:05}-of-{num:05}.safetensors"
        some = {key: tensors[key] for key in sorted(tensors)[index::num]}
        save_file(some, target / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(some, name)
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    published = json.loads((folder / "config.json").read_text())
    published["auto_map"] = {"AutoConfig": "configuration_qwen.QWenConfig", "AutoModelForCausalLM": "modeling_qwen.X"}
    (target / "config.json").write_text(json.dumps(published))
    return target


@pytest.fixture
def checkout(oracle_folder, tmp_path):
    """A copy like the hub's: shards, and a config that names code files."""
    return shards_of(oracle_folder, tmp_path)


def test_every_tensor_in_memory_is_that_of_the_file(checkout, oracle_folder):
    model, report = AutoModelForImageTextToText.from_pretrained(checkout, dtype=torch.float32, output_loading_info=True)
    assert type(model) is QwenVLForConditionalGeneration
    assert not any(report.values())
    expected, found = expected_tensors(oracle_folder / "model.safetensors"), model.state_dict()
    assert len(expected) == 69 and expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert list(model.named_buffers()) == []


def test_saved_files_are_like_the_published_ones(model, oracle_folder, tmp_path):
    published = load_file(oracle_folder / "model.safetensors")
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == published.keys()
    assert all(torch.equal(saved[name], published[name]) for name in published)
    again = QwenVLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "qwen"
    fresh = QwenVLForConditionalGeneration(model.config)
    fresh.save_pretrained(tmp_path / "fresh")
    assert load_file(tmp_path / "fresh" / "model.safetensors").keys() == published.keys()


def test_code_files_of_the_repository_are_forgotten(checkout):
    config = AutoConfig.from_pretrained(checkout)
    assert type(config) is QwenVLConfig and not hasattr(config, "auto_map")


def test_new_models_start_from_finite_numbers(oracle_folder):
    torch.manual_seed(0)
    model = QwenVLForConditionalGeneration(AutoConfig.from_pretrained(oracle_folder))
    assert [name for name, tensor in model.named_parameters() if not tensor.isfinite().all()] == []
    assert 0 < model.model.visual.proj.std() < 0.03


def test_four_bits_while_loading(checkout, oracle_folder):
    plan = replace(tiny_plan(checkout), base_dtype="bf16")
    model = load_base(plan)
    text = model.model.language_model.layers[0]
    assert {type(module).__name__ for module in (text.self_attn.k_proj, text.mlp.up_proj)} == {"Linear4bit"}
    assert type(model.lm_head) is torch.nn.Linear and model.lm_head.weight.dtype == torch.bfloat16
    assert type(model.model.visual.attn_pool.kv_proj).__name__ == "Linear4bit"
    assert model.model.visual.attn_pool.attn.in_proj_weight.dtype == torch.bfloat16
    expected = expected_tensors(oracle_folder / "model.safetensors")
    for name, parameter in model.named_parameters():
        if parameter.dtype == torch.bfloat16:
            assert torch.equal(parameter, expected[name].bfloat16()), name
        else:
            packed, _ = quantize_4bit(expected[name].bfloat16(), quant_type="nf4", compress_statistics=True)
            assert torch.equal(parameter.data, packed), name


def test_loading_in_four_bits_never_holds_all_in_sixteen(checkout, monkeypatch):
    """A tensor that is packed is let go before many others are read."""
    read, most, materialise = [], [0], core_model_loading._materialize_copy

    def counted(*args, **kwargs):
        tensor = materialise(*args, **kwargs)
        read.append(weakref.ref(tensor))
        most.append(sum(live.nbytes for ref in read if (live := ref()) is not None))
        return tensor

    monkeypatch.setattr(core_model_loading, "_materialize_copy", counted)
    model = load_base(replace(tiny_plan(checkout), base_dtype="bf16"))
    kept = sum(p.nbytes for p in model.parameters() if p.dtype == torch.bfloat16)
    packed = [p.quant_state.shape.numel() * 2 for p in model.parameters() if p.dtype == torch.uint8]
    assert len(read) == 61 and sum(packed) > 4 * 3 * max(packed)
    assert max(most) <= kept + 2 * 3 * max(packed)  # the fused weight is three times as large


def test_a_tensor_of_another_shape_is_refused(oracle_folder, tmp_path):
    shutil.copy(oracle_folder / "config.json", tmp_path)
    tensors = load_file(oracle_folder / "model.safetensors")
    tensors["transformer.h.1.mlp.w1.weight"] = torch.zeros(100, 256)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VlmtuneError, match="lack 1 tensors of the model, or have them in another shape, such as model"):
        load_base(tiny_plan(tmp_path))


def test_adapters_by_full_paths(model, tmp_path):
    target = r"model\.language_model\..*\.(q_proj|down_proj)"
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=target))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    ids = torch.arange(9)[None]
    expected = tuned(input_ids=ids).logits
    merged = tuned.merge_and_unload()
    merged.save_pretrained(tmp_path)
    again = QwenVLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    torch.testing.assert_close(again(input_ids=ids).logits, expected, rtol=0, atol=1e-3)


def test_parameters_at_full_size():
    """Counted by the authors' own code: 9,656,935,168."""
    entry = find_entry("Qwen/Qwen-VL-Chat")
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(entry.folder))
    assert model.num_parameters() == 9_656_935_168
    parts = dict.fromkeys(("text", "head", "vision", "projector"), 0)
    for name, parameter in model.named_parameters():
        parts[FAMILY.part_of(name)] += parameter.numel()
    linears = (module for module in model.model.language_model.modules() if isinstance(module, torch.nn.Linear))
    assert parts == {key: entry.parameters[key] for key in parts}
    assert parts["vision"] + parts["projector"] == 1_935_610_624
    assert sum(module.weight.numel() for module in linears) == 6_476_005_376
    assert len(list(model.parameters())) == 853 + 32 * 4  # three pieces of each fused weight and bias


def test_weightless_model_at_full_size():
    plan = replace(tiny_plan(find_entry("Qwen/Qwen-VL-Chat").folder), base_dtype="bf16")
    rows = inventory(build_model(plan, weights="none"), FAMILY)
    four_bit = sum(row.stored_bytes for row in rows if row.dtype == "nf4")
    assert sum(row.parameters for row in rows if not row.part.startswith("adapter")) == 9_656_935_168
    assert four_bit == pytest.approx(0.516 * sum(row.parameters for row in rows if row.dtype == "nf4"), rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"kv_channels": 32}, "kv_channels × heads is not hidden_size"),
        ({"rotary_pct": 0.5}, "rotary_pct is not 1.0"),
        ({"attn_dropout_prob": 0.1}, "dropout is not 0"),
        ({"no_bias": False}, "no_bias is false"),
        ({"visual": {"output_dim": 64, "width": 32}}, "visual.output_dim is not hidden_size"),
    ],
)
def test_configs_of_another_architecture_are_refused(oracle_folder, changes, problem):
    config = json.loads((oracle_folder / "config.json").read_text())
    with pytest.raises(VlmtuneError, match=problem):
        QwenVLConfig(**{**config, **changes})


def test_a_text_only_qwen_is_refused_by_name(oracle_folder, tmp_path):
    config = json.loads((oracle_folder / "config.json").read_text())
    del config["visual"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(VlmtuneError, match="this Qwen model reads text only"):
        tiny_plan(tmp_path)
