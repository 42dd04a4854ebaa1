"""Bases whose files are in 4 bits already: the same model as quantising makes, whatever names their files have."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny import TINY
from tiny.packed import WEIGHTS, change_config, change_tensors, save_packed
from tiny.rows import TinyModel, colour_rows, tiny_plan

from vlmtune.compat.bitsandbytes import state_of
from vlmtune.data.collate import WHERE, collate
from vlmtune.data.dataset import TuneDataset
from vlmtune.engine.step import forward_loss
from vlmtune.errors import VlmtuneError
from vlmtune.hub.shards import stored_tensors
from vlmtune.hub.source import open_model
from vlmtune.models.build import base_of, build_model, check_checkpoint, load_base
from vlmtune.models.inventory import inventory
from vlmtune.models.packed import as_unpacked
from vlmtune.models.tiny import tiny_model
from vlmtune.models.verify import refuse_other_numbers

LOADED = sorted(TINY.keys() - {"qwen"})
"""Qwen-VL's published layers are taken apart while loading, which packed ones cannot be."""
TOWER_16BIT = {"quantization": {"quantize_vision_tower": False}}
FP4 = {"quantization": {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}}


def bytes_of(model) -> dict[str, torch.Tensor]:
    """Every tensor of a model, the constants of its packed weights included, but how they were written."""
    return {name: value for name, value in model.state_dict().items() if "quant_state" not in name}


def assert_same(model, other) -> None:
    found, expected = bytes_of(model), bytes_of(other)
    assert found.keys() == expected.keys() and len(found) >= 100
    for name, value in found.items():
        assert value.dtype == expected[name].dtype and torch.equal(value, expected[name]), name


def learned(model, tiny, plan, folder) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    rows = list(TuneDataset(colour_rows(folder), tiny.processor, tiny.family, plan))
    batch = collate(rows, tiny.processor.tokenizer.pad_token_id)
    batch.pop(WHERE)
    adapters = [value for value in model.parameters() if value.requires_grad]
    torch.manual_seed(1)
    with torch.no_grad():
        for value in adapters:
            value.normal_(std=0.05)
    loss = forward_loss(model.train(), batch, plan)
    return loss.detach(), torch.autograd.grad(loss, adapters)


@pytest.mark.parametrize("name", LOADED)
def test_it_learns_bit_for_bit_as_if_it_were_quantised_while_loading(name, models, tmp_path):
    tiny = models(name)
    plan = tiny_plan(save_packed(tiny.folder, tmp_path / "packed"))
    assert plan.prequantised and (plan.quant_type, plan.double_quant) == ("nf4", True)
    packed, fresh = build_model(plan), build_model(tiny.plan)
    assert_same(packed, fresh)
    rows = inventory(packed, tiny.family)
    assert rows == inventory(fresh, tiny.family) == inventory(build_model(plan, weights="none"), tiny.family)
    loss, gradients = learned(packed, tiny, plan, tmp_path)
    expected_loss, expected = learned(fresh, tiny, tiny.plan, tmp_path)
    assert torch.equal(loss, expected_loss) and len(gradients) == len(expected) >= 8
    assert all(map(torch.equal, gradients, expected))


@pytest.mark.parametrize(
    ("bits", "settings"),
    [
        ({"quant_type": "fp4", "double_quant": False}, FP4),
        ({"skip": ("lm_head", "model.vision_tower", "model.multi_modal_projector")}, TOWER_16BIT),
    ],
)
def test_it_is_what_the_files_say_whatever_the_config_would_make(bits, settings, models, tmp_path):
    tiny = models("llava")
    plan = tiny_plan(save_packed(tiny.folder, tmp_path / "packed", **bits))
    fresh = build_model(tiny_plan(tiny.folder, training=settings))
    assert_same(build_model(plan), fresh)
    assert inventory(build_model(plan, weights="none"), tiny.family) == inventory(fresh, tiny.family)


@pytest.mark.parametrize("double_quant", [True, False])
def test_its_layers_are_streamed_like_those_of_a_base_that_is_quantised(double_quant, tmp_path, monkeypatch):
    deep = TinyModel("llava", tmp_path, layers=5)
    folder = save_packed(deep.folder, tmp_path / "packed", double_quant=double_quant)
    streamed = {"hardware": {"streamed_layers": 4}}
    plan = tiny_plan(folder, **streamed)
    bits = {"training": {"quantization": {"bnb_4bit_use_double_quant": double_quant}}}
    fresh = build_model(tiny_plan(deep.folder, **streamed, **bits))
    with monkeypatch.context() as one_by_one:  # else all of the files would come to the card at once
        one_by_one.setattr("transformers.core_model_loading.ThreadPoolExecutor", None)
        packed = build_model(plan)
    loss, gradients = learned(packed, deep, plan, tmp_path)
    expected_loss, expected = learned(fresh, deep, plan, tmp_path)
    assert torch.equal(loss, expected_loss) and all(map(torch.equal, gradients, expected))
    assert inventory(build_model(plan, weights="none"), deep.family) == inventory(packed, deep.family)


def test_one_layer_left_in_16_bits_stays_so(models, tmp_path):
    """As some published models leave single layers of single blocks."""
    tiny, left = models("llava"), "model.language_model.layers.1.mlp.down_proj"
    plan = tiny_plan(save_packed(tiny.folder, tmp_path / "packed", skip=("lm_head", left)))
    for weights in ("checkpoint", "none"):
        base = base_of(build_model(plan, weights=weights))
        packed = {name for name, tensor in base.named_parameters() if state_of(tensor) is not None}
        # An adapter lies around each layer of the language model.
        assert f"{left}.base_layer.weight" not in packed
        assert f"{left.replace('layers.1', 'layers.0')}.base_layer.weight" in packed and len(packed) >= 25


OLDER_NAMES = {
    "language_model.lm_head.": "lm_head.",
    "language_model.model.": "model.language_model.",
    "vision_tower.": "model.vision_tower.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}
"""As transformers saves LLaVA to this day → as it lies in memory."""


def rename(tensors) -> None:
    for name in list(tensors):
        older = next(older for older in OLDER_NAMES if name.startswith(older))
        tensors[name.replace(older, OLDER_NAMES[older], 1)] = tensors.pop(name)


@pytest.mark.parametrize("change", [lambda tensors: None, rename], ids=["older names", "names of today"])
def test_files_say_what_is_packed_and_not_their_list_of_left_layers(change, models, tmp_path):
    """`vision_tower` once meant every module with that word in its path; today it would mean none."""
    tiny = models("llava")
    folder = save_packed(tiny.folder, tmp_path / "packed", skip=("lm_head", "model.vision_tower"))
    expected = load_base(tiny_plan(folder))
    change_tensors(folder, change)
    change_config(folder, lambda config: config["quantization_config"].update(llm_int8_skip_modules=["vision_tower"]))
    plan = tiny_plan(folder)
    assert_same(load_base(plan), expected)
    rows = inventory(build_model(plan), tiny.family)
    assert rows == inventory(build_model(plan, weights="none"), tiny.family)
    assert {row.dtype for row in rows if row.part == "vision"} == {"float32"}


def test_files_of_another_format_than_the_run_are_taken_to_it(models, tmp_path):
    tiny = models("llava")
    plan = tiny_plan(save_packed(tiny.folder, tmp_path / "packed", dtype=torch.bfloat16))
    base = load_base(plan)
    packed = [tensor for tensor in base.parameters() if state_of(tensor) is not None]
    assert {tensor.dtype for tensor in base.parameters()} == {torch.uint8, torch.float32}
    assert len(packed) >= 25 and {state_of(tensor).dtype for tensor in packed} == {torch.float32}


@pytest.mark.parametrize("double_quant", [True, False])
def test_what_loading_has_replaced_is_found_to_the_bit(double_quant, models, tmp_path):
    folder = save_packed(models("llava").folder, tmp_path / "packed", double_quant=double_quant)
    base, stored = load_base(tiny_plan(folder)), as_unpacked(stored_tensors(folder), folder)
    compared = refuse_other_numbers(base, stored, folder).compared
    name = next(name for name in compared if name.endswith("q_proj.weight") and "language" in name)
    weight = base.get_parameter(name)
    state = state_of(weight)
    parts = [weight.data, state.absmax, state.code, *([state.state2.absmax] if double_quant else [])]
    for part in parts:
        before = part.clone()
        part.view(torch.uint8).bitwise_xor_(1)
        with pytest.raises(VlmtuneError, match=f"{name} in memory is not what"):
            refuse_other_numbers(base, stored, folder)
        part.copy_(before)
    refuse_other_numbers(base, stored, folder)


@pytest.fixture
def folder(models, tmp_path):
    return save_packed(models("llava").folder, tmp_path / "packed")


STATE = ".weight.quant_state.bitsandbytes__nf4"


def named(tensors, ending: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(ending))


def write_state(**changes):
    def change(tensors) -> None:
        said = json.loads(bytes(tensors[named(tensors, STATE)].tolist())) | changes
        tensors[named(tensors, STATE)] = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)

    return change


def write(ending: str, tensor: torch.Tensor):
    return lambda tensors: tensors.update({named(tensors, ending): tensor})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda tensors: tensors.pop(named(tensors, ".weight.absmax")), "absmax is missing"),
        (lambda tensors: tensors.pop(named(tensors, ".weight.nested_absmax")), "nested_absmax is missing"),
        (write(".weight.quant_map", torch.zeros(15)), "quant_map is missing, or does not belong to 4 bits"),
        (write(STATE, torch.tensor([123], dtype=torch.uint8)), "does not say what is packed"),
        (write_state(shape=[64, -64]), "does not say what is packed"),
        (write_state(shape=[64, 32]), "does not belong to 4 bits of shape [64, 32]"),
        (write_state(blocksize=128), "in blocks of 128 numbers"),
        (lambda tensors: tensors.pop(named(tensors, "layernorm.weight")), "lack 1 tensors of the model"),
    ],
)
def test_damaged_files_are_refused_before_a_weight_is_read(folder, damage, said):
    plan = tiny_plan(folder)
    check_checkpoint(plan)
    change_tensors(folder, damage)
    with pytest.raises(VlmtuneError) as error:
        check_checkpoint(plan)
    assert said in error.value.message


def test_layers_that_the_installed_library_has_otherwise_are_named(folder):
    def rename(tensors) -> None:
        for name in [name for name in tensors if ".layers.0.mlp.up_proj." in name and "language" in name]:
            tensors[name.replace("up_proj", "fused_proj")] = tensors.pop(name)

    change_tensors(folder, rename)
    for check in (check_checkpoint, lambda plan: build_model(plan, weights="none")):
        with pytest.raises(VlmtuneError, match="fused_proj"):
            check(tiny_plan(folder))


def test_layers_that_a_family_needs_in_full_are_named(folder):
    plan = dataclasses.replace(tiny_plan(folder), unquantized=("layers.1.mlp.up_proj",))
    with pytest.raises(VlmtuneError, match=r"has model\.language_model\.layers\.1\.mlp\.up_proj in 4 bits"):
        check_checkpoint(plan)


def test_a_tiny_version_of_it_is_in_16_bits(folder, tmp_path):
    source = open_model(str(folder), None, tmp_path)
    assert source.prequantised
    tiny = tiny_model(source.config, source.preprocessor, tmp_path / "tiny")
    assert open_model(str(tiny), None, tmp_path).prequantised is None


def test_files_in_4_bits_of_which_the_config_says_nothing(folder):
    change_config(folder, lambda config: config.pop("quantization_config"))
    plan = tiny_plan(folder)
    assert not plan.prequantised
    with pytest.raises(VlmtuneError, match="are in 4 bits, of which its config.json says nothing"):
        check_checkpoint(plan)


def test_a_config_that_tells_of_4_bits_with_files_in_16(folder, models):
    shutil.copy(models("llava").folder / WEIGHTS, folder / WEIGHTS)
    assert len(load_file(folder / WEIGHTS)) >= 30
    with pytest.raises(VlmtuneError, match="tells of 4 bits, and its files have no weight in 4 bits"):
        tiny_plan(folder)
