"""What is known of a model: config.json where it speaks, the library's default of the class where it is silent."""

import dataclasses
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

from vlmtune.catalog import catalog
from vlmtune.config.schema import TrainingConfig
from vlmtune.errors import VlmtuneError
from vlmtune.families.facts import CAPPED_BY_DEFAULT, PER_LAYER_BY_DEFAULT, ModelFacts
from vlmtune.hub.source import open_model
from vlmtune.plan.decide import BYTES_PER_LOGIT, LOSS_CHUNK_BYTES, make_plan
from vlmtune.plan.types import Device

CARD = Device("cuda", "RTX 4060", bf16=True)


def source_of(model_id: str):
    return open_model(model_id, None, Path(), offline_catalog=True)


@pytest.mark.parametrize("entry", catalog(), ids=lambda entry: entry.model_id)
def test_facts_are_those_of_the_library(entry):
    from transformers import CONFIG_MAPPING, AutoConfig

    source = source_of(entry.model_id)
    facts = source.facts(entry.model_id)
    if source.config["model_type"] not in CONFIG_MAPPING:
        assert (facts.num_layers, facts.vocabulary, facts.shares_embedding) == (32, 151_936, False)
        return
    whole = AutoConfig.for_model(**deepcopy(source.config))
    text = whole.get_text_config()
    assert (facts.num_layers, facts.vocabulary) == (text.num_hidden_layers, text.vocab_size)
    assert facts.shares_embedding == (entry.parameters["head"] == 0)
    assert facts.shares_embedding == (bool(getattr(whole, "tie_word_embeddings", False)) and not source.has_own_head)
    assert facts.per_layer_embeddings == bool(getattr(text, "hidden_size_per_layer_input", 0))
    assert facts.caps_attention == bool(getattr(text, "attn_logit_softcapping", None))


@pytest.mark.parametrize("model_id", ["google/gemma-3-4b-it", "google/gemma-3-12b-it"])
def test_a_vocabulary_that_config_json_leaves_out_is_the_class_s_own(model_id):
    """Gemma 3's files leave it out: taken for 32,000, logits of 832 tokens at a time took 2 GiB in place of 256 MiB."""
    source = source_of(model_id)
    assert "vocab_size" not in source.config and "vocab_size" not in source.config["text_config"]
    assert source.facts(model_id).vocabulary == 262_208
    config = TrainingConfig.model_validate({"model": {"name": model_id}, "data": {"train_path": "r"}})
    plan = make_plan(config, source, CARD)
    assert plan.loss_chunk_tokens == 96
    assert plan.loss_chunk_tokens * 262_208 * BYTES_PER_LOGIT <= LOSS_CHUNK_BYTES


def defaults_of(field: str) -> dict[type, object]:
    """Class of a config in the library → its default of a field, where it has one."""
    import transformers.models

    found = {}
    for module in iter_modules(transformers.models.__path__):
        try:
            configs = import_module(f"transformers.models.{module.name}.configuration_{module.name}")
        except ModuleNotFoundError:
            continue
        for kind in vars(configs).values():
            fields = getattr(kind, "__dataclass_fields__", {})
            if field in fields and isinstance(getattr(kind, "model_type", None), str):
                found[kind] = fields[field].default
    return found


def test_every_class_of_the_library_that_caps_attention_by_default_is_known():
    capped = {
        kind.model_type: default
        for kind, default in defaults_of("attn_logit_softcapping").items()
        if isinstance(default, float)
    }
    text_models = {name: value for name, value in capped.items() if not name.startswith("videoprism")}
    assert "gemma2" in capped and text_models == CAPPED_BY_DEFAULT


def test_every_class_of_the_library_that_has_embeddings_for_each_layer_by_default_is_known():
    found = {kind.model_type for kind, default in defaults_of("hidden_size_per_layer_input").items() if default}
    assert found - {"embedding_gemma2_text"} == set(PER_LAYER_BY_DEFAULT)  # that one writes no text


def test_nothing_is_asked_of_the_library_that_the_file_says(monkeypatch):
    """Importing the library takes two seconds: a kept estimate must not need it."""
    monkeypatch.setattr(ModelFacts, "_library", property(lambda self: pytest.fail("the library was asked")))
    source = source_of("Qwen/Qwen3-VL-4B-Instruct")
    facts = source.facts("m")
    assert (facts.num_layers, facts.vocabulary, facts.caps_attention) == (36, 151_936, False)
    assert facts.fixed_images is False and dataclasses.is_dataclass(facts.family)


@pytest.mark.parametrize("value", [0, -1, "many", 1.5, True])
@pytest.mark.parametrize("fact", ["vocabulary", "num_layers", "hidden_size"])
def test_a_number_that_no_model_has_is_a_damaged_config(fact, value):
    keys = {"vocabulary": "vocab_size", "num_layers": "num_hidden_layers", "hidden_size": "hidden_size"}
    facts = ModelFacts({"model_type": "llava", "text_config": {keys[fact]: value}}, {}, "org/model")
    with pytest.raises(VlmtuneError, match=f"{keys[fact]} is {value!r}, no whole number above 0"):
        getattr(facts, fact)
