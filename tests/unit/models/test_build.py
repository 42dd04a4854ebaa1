"""The two memory levers of the model: fewer layers that recompute, and a head in 4 bits."""

from dataclasses import replace

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from tiny import TINY, save_tiny
from tiny.packed import change_config, change_tensors
from tiny.rows import colour_rows, tiny_plan
from torch.autograd.graph import saved_tensors_hooks
from transformers.modeling_layers import GradientCheckpointingLayer

from vlmtune.compat.transformers import SAVE_ON_CPU
from vlmtune.data.collate import WHERE, collate
from vlmtune.data.dataset import TuneDataset
from vlmtune.engine.step import forward_loss
from vlmtune.hub.source import open_model
from vlmtune.models.build import base_of, build_model, load_base, weightless_base
from vlmtune.models.inventory import inventory

UNTIED = ("llava", "smolvlm", "qwen2_5_vl")
HEAD = {"training": {"quantization": {"quantize_head": True}}}


@pytest.fixture
def learn(models, tmp_path):
    """A function that returns the loss and the gradients of a model on the tiny rows."""

    def run(name: str, model: torch.nn.Module, plan) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        tiny = models(name)
        rows = list(TuneDataset(colour_rows(tmp_path), tiny.processor, tiny.family, plan))
        batch = collate(rows, tiny.processor.tokenizer.pad_token_id)
        batch.pop(WHERE)
        adapters = {key: value for key, value in model.named_parameters() if value.requires_grad}
        torch.manual_seed(1)
        with torch.no_grad():
            for value in adapters.values():
                value.normal_(std=0.05)
        loss = forward_loss(model, batch, plan)
        return loss.detach(), dict(zip(adapters, torch.autograd.grad(loss, adapters.values()), strict=True))

    return run


def text_layers(model, family) -> list[torch.nn.Module]:
    text = base_of(model).get_submodule(family.text)
    return [module for module in text.modules() if isinstance(module, GradientCheckpointingLayer)]


@pytest.mark.parametrize("name", sorted(TINY))
def test_layers_that_keep_their_activations_learn_the_same(name, models, learn):
    folder, family = models(name).folder, models(name).family
    some = tiny_plan(folder, hardware={"checkpointed_layers": 1})
    model = build_model(some).train()
    layers = text_layers(model, family)
    assert [layer.gradient_checkpointing for layer in layers] == [True, False]
    norms = [next(m for n, m in layer.named_modules() if n.endswith("layernorm")) for layer in layers]
    calls = [0, 0]
    for number, norm in enumerate(norms):

        def count(module, args, number=number):
            calls[number] += 1

        norm.register_forward_pre_hook(count)
    loss, gradients = learn(name, model, some)
    assert calls == [2, 1], "the first layer is computed again in the backward pass, the second is not"
    all_loss, all_gradients = learn(name, build_model(tiny_plan(folder)).train(), tiny_plan(folder))
    assert torch.equal(loss, all_loss) and gradients.keys() == all_gradients.keys()
    for key, value in gradients.items():
        torch.testing.assert_close(value, all_gradients[key], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("layers", [None, 1])
@pytest.mark.parametrize("name", sorted(TINY))
def test_what_layers_recompute_from_waits_in_main_memory_and_gives_the_same_bits(name, layers, models, learn):
    plan = replace(tiny_plan(models(name).folder), checkpointed_layers=layers)
    expected_loss, expected = learn(name, build_model(plan).train(), plan)
    saved: list[torch.Size] = []
    real = SAVE_ON_CPU.get()

    def save_on_cpu(**settings) -> saved_tensors_hooks:
        hooks = real(**settings)

        def pack(tensor: torch.Tensor):
            saved.append(tensor.shape)
            return hooks.pack_hook(tensor)

        return saved_tensors_hooks(pack, hooks.unpack_hook)

    offloading = replace(plan, offload_activations=True)
    with SAVE_ON_CPU.replaced(save_on_cpu):
        loss, gradients = learn(name, build_model(offloading).train(), offloading)
    hidden = [shape for shape in saved if len(shape) == 3]
    assert len(hidden) == (layers or 2) and len(set(hidden)) == 1, "one a layer that recomputes"
    assert torch.equal(loss, expected_loss) and gradients.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in gradients.items())


@pytest.mark.parametrize("chunk_tokens", [8, 10_000])
@pytest.mark.parametrize("name", UNTIED)
def test_a_head_in_4_bits_gives_the_gradients_of_the_same_numbers_in_full(name, chunk_tokens, models, learn):
    plan = replace(tiny_plan(models(name).folder, **HEAD), loss_chunk_tokens=chunk_tokens)
    model = build_model(plan).train()
    head = base_of(model).get_output_embeddings()
    assert type(head) is Linear4bit
    loss, gradients = learn(name, model, plan)
    weight = dequantize_4bit(head.weight.data, head.weight.quant_state)
    full = torch.nn.Linear(head.in_features, head.out_features, bias=False)
    full.weight = torch.nn.Parameter(weight, requires_grad=False)
    base_of(model).set_output_embeddings(full)
    full_loss, full_gradients = learn(name, model, plan)
    torch.testing.assert_close(loss, full_loss, rtol=1e-5, atol=1e-6)
    for key, value in gradients.items():
        torch.testing.assert_close(value, full_gradients[key], rtol=1e-3, atol=1e-6)
        assert value.abs().max() > 0


@pytest.mark.parametrize("name", sorted(TINY))
def test_the_model_without_storage_has_the_same_head(name, models):
    plan = tiny_plan(models(name).folder, **HEAD)
    rows = inventory(build_model(plan, weights="none"), models(name).family)
    assert rows == inventory(build_model(plan), models(name).family)
    assert {row.dtype for row in rows if row.part == "head"} == (
        {"nf4"} if name in (*UNTIED, "idefics3", "instructblip", "qwen") else set()
    )


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "gemma3", "paligemma"])
def test_a_head_that_is_the_embedding_stays_and_the_plan_says_so(name, models):
    plan = tiny_plan(models(name).folder, **HEAD)
    assert "lm_head" in plan.unquantized
    said = {choice.key: choice for choice in plan.choices}["training.quantization.quantize_head"]
    assert said.value == "false" and said.reason.startswith("the head shares the embedding's weights")


def test_a_head_of_the_files_own_is_built_where_config_json_is_silent(tmp_path):
    """As Mistral Small 3.1 and InternVL3 have it: the library's default would make head and embedding one."""
    folder = save_tiny("gemma3", tmp_path)
    change_config(folder, lambda config: [part.pop("tie_word_embeddings") for part in (config, config["text_config"])])
    assert open_model(str(folder), None, tmp_path).facts("tiny").shares_embedding

    def add_head(tensors: dict) -> None:
        (embedding,) = (name for name in tensors if name.endswith("embed_tokens.weight"))
        tensors["language_model.lm_head.weight"] = tensors[embedding] + 1

    change_tensors(folder, add_head)
    plan = tiny_plan(folder)
    assert plan.has_own_head and not open_model(str(folder), None, tmp_path).facts("tiny").shares_embedding
    loaded, described = load_base(plan), weightless_base(plan)
    head, embedding = loaded.get_output_embeddings().weight, loaded.get_input_embeddings().weight
    assert torch.equal(head, embedding + 1)
    assert {name: p.shape for name, p in loaded.named_parameters()} == {
        name: p.shape for name, p in described.named_parameters()
    }
