"""Tables of embeddings in main memory: the same numbers come of it, and no table is ever on the card."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import TINY
from tiny.rows import colour_rows
from transformers import AutoModelForImageTextToText

from vlmtune.data.collate import WHERE, Collator, collate
from vlmtune.data.dataset import TuneDataset
from vlmtune.engine.evaluate import generated
from vlmtune.engine.step import forward_loss
from vlmtune.engine.trainer import TuneTrainer
from vlmtune.estimate.simulate.simulation import Run, simulate
from vlmtune.hub.source import open_model
from vlmtune.models import build
from vlmtune.models.build import base_of, build_model
from vlmtune.models.embeddings import PER_LAYER, tables_of
from vlmtune.models.tiny import shrink
from vlmtune.runs.folder import RunFolder

UNTIED = ("idefics3", "instructblip", "llava", "qwen", "qwen2_5_vl", "smolvlm")
PER_LAYER_MODELS = ("google/gemma-3n-E2B-it", "google/gemma-4-E2B-it")


@pytest.fixture
def learned(models, tmp_path):
    """A function that returns the loss of the tiny rows and the gradients of all that learns."""

    def run(name: str, plan) -> list[torch.Tensor]:
        tiny = models(name)
        rows = list(TuneDataset(colour_rows(tmp_path), tiny.processor, tiny.family, plan))
        batch = collate(rows, tiny.processor.tokenizer.pad_token_id)
        batch.pop(WHERE)
        model = build_model(plan).train()
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in learning:
                parameter.normal_(std=0.05)
        loss = forward_loss(model, batch, plan)
        return [loss.detach(), *torch.autograd.grad(loss, learning)]

    return run


def in_main_memory(plan):
    return replace(plan, offload_embeddings=True)


@pytest.mark.parametrize("name", UNTIED)
def test_loss_and_gradients_are_the_same_to_the_bit(name, models, learned, monkeypatch):
    plan, asked = models(name).plan, []
    expected = learned(name, plan)
    real = build.embeddings._looked_up

    def noted(library, head, ids):
        def look_up(tokens):
            asked.append(tokens.tolist())
            return library(tokens)

        different = set(ids.flatten().tolist())
        rows = real(look_up, head, ids)
        assert asked == [sorted(different)] and len(different) < ids.numel() / 2, "each row travels once"
        return rows

    monkeypatch.setattr(build.embeddings, "_looked_up", noted)
    found = learned(name, in_main_memory(plan))
    assert len(asked) == 1
    assert len(found) == len(expected) > 1 and all(map(torch.equal, found, expected))


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_table_that_is_the_head_is_none_of_them(name, models):
    base = base_of(build_model(in_main_memory(models(name).plan), weights="none"))
    places = {path: parameter.device.type for path, parameter in base.named_parameters()}
    on_cpu = {path for path, place in places.items() if place == "cpu"}
    family = models(name).family
    assert on_cpu == ({f"{family.text}.embed_tokens.weight"} if name in UNTIED else set())
    assert sum(place == "meta" for place in places.values()) > 20


@pytest.mark.parametrize("model_id", PER_LAYER_MODELS)
def test_a_table_for_each_layer_leaves_though_the_head_shares_the_other_one(model_id):
    """With its own scale, which is multiplied in main memory, and then the numbers are still the same."""
    from transformers import AutoConfig

    config = shrink(open_model(model_id, None, Path(), offline_catalog=True).config)
    if "num_kv_shared_layers" in config["text_config"]:  # too few layers are left to share keys and values
        config["text_config"]["num_kv_shared_layers"] = 0
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**config)).eval()
    assert [path.rpartition(".")[2] for path in tables_of(model)] == [PER_LAYER]
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        build.embeddings.keep_in_main_memory(model, _Offload)
        assert torch.equal(model(input_ids=ids).logits, expected)


class _Offload:
    offload_embeddings = True


def test_a_table_is_loaded_into_main_memory_while_the_rest_goes_to_the_card(models, monkeypatch):
    """The card is the meta device here, on which nothing has numbers."""
    monkeypatch.setattr(build, "refuse_other_numbers", lambda *args: None)
    tiny = models("llava")
    plan = replace(in_main_memory(tiny.plan), device="meta", method="lora", quant_type=None)
    base = build.load_base(plan)
    table = base.get_input_embeddings()
    on_card = [path for path, tensor in base.state_dict().items() if tensor.is_meta]
    assert len(on_card) == len(base.state_dict()) - 1
    file = build.load_base(replace(plan, device="cpu")).get_input_embeddings().weight
    assert torch.equal(table.weight, file)
    rows = table(torch.arange(3)[None])
    assert rows.is_meta and rows.shape == (1, 3, file.shape[1])


def test_a_base_in_4_bits_may_have_a_part_in_main_memory_only_where_it_is_split(models):
    plan = in_main_memory(models("llava").plan)
    assert build._quantization_config(replace(plan, device="cuda")).llm_int8_enable_fp32_cpu_offload
    for whole in (plan, replace(plan, device="cuda", offload_embeddings=False)):
        assert not build._quantization_config(whole).llm_int8_enable_fp32_cpu_offload


def test_trainer_moves_no_model(models, tmp_path, monkeypatch):
    plan = in_main_memory(replace(models("llava").plan, method="lora", quant_type=None))
    model = build_model(plan)
    monkeypatch.setattr(model, "to", lambda *args: pytest.fail("the model was moved"))
    TuneTrainer(plan, model, RunFolder.create(tmp_path / "run"), [1], Collator(models("llava").processor))


@pytest.mark.parametrize("load", [True, False])
def test_the_simulated_card_has_rows_and_no_table(load, models, tmp_path):
    tiny = models("llava")
    rows = list(TuneDataset(colour_rows(tmp_path, 1), tiny.processor, tiny.family, tiny.plan))
    batch = collate(rows, tiny.processor.tokenizer.pad_token_id)
    batch.pop(WHERE)
    run = Run([[batch]]) if load else Run([[batch]], load=None)
    on_card, away = simulate(tiny.plan, run), simulate(in_main_memory(tiny.plan), run)

    def before_steps(log) -> int:
        end = dict(log.phases)["step 1"]
        sizes = {handle: num_bytes for handle, num_bytes in log.events[:end] if handle > 0}
        for handle, _ in log.events[:end]:
            sizes.pop(-handle, None)
        return sum(sizes.values())

    table = base_of(build_model(tiny.plan, weights="none")).get_input_embeddings().weight
    assert before_steps(on_card) - before_steps(away) == table.numel() * table.element_size()
    warm_up = [log.events[0][1] for log in (on_card, away)]
    assert warm_up[0] - warm_up[1] == (table.numel() * table.element_size() if load else 0)


def test_an_answer_is_written_where_the_head_is(models, monkeypatch):
    """The first weight of a model without its tower is a table in main memory."""
    tiny, seen = models("llava"), []
    plan = replace(tiny.plan, cache_features=True, offload_embeddings=True)
    model = build_model(plan, weights="none")
    assert next(model.parameters()).device.type == "cpu" and model.get_output_embeddings().weight.is_meta
    monkeypatch.setattr(base_of(model), "generate", lambda **how: seen.append(base_of(model).device.type))
    monkeypatch.setattr(model, "generate", base_of(model).generate)
    generated(model, {})
    assert seen == ["meta"] and base_of(model).device.type == "cpu"
