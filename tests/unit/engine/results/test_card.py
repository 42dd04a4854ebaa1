"""The card beside a result: the hub's metadata, and nothing of the machine."""

from dataclasses import replace

import pytest
import yaml

from vlmtune.engine.results.card import card_of

REPORT = {
    "num_rows": 7,
    "steps": 8,
    "precision": "fp32",
    "train_loss_first": 2.0,
    "train_loss_last": 0.5,
    "eval_loss": 0.25,
    "best": {"name": "loss", "value": 0.25, "step": 6},
    "versions": {"torch": "2.11", "peft": "0.19", "python": "3.11"},
    "notes": ["/home/me/secret"],
}


@pytest.fixture
def plan(models):
    return models("llava").plan


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def test_a_hub_model_is_named_for_the_hub(plan, monkeypatch, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\nlicense: mit\n")
    monkeypatch.setattr("vlmtune.engine.results.card.checkpoint_folder", lambda *args, **kwargs: tmp_path)
    card = card_of(replace(plan, model_name="org/model", revision="abc"), REPORT, whole=False)
    assert front_matter(card) == {
        "base_model": "org/model",
        "library_name": "peft",
        "pipeline_tag": "image-text-to-text",
        "license": "apache-2.0",
        "tags": ["vlmtune", "lora", "qlora"],
    }
    assert 'from_pretrained("org/model", dtype="auto"' in card and "PeftModel" in card
    for said in ("| rows | 7 |", "| evaluation loss | 0.2500 |", "| best step | 6, by loss |", "torch 2.11, peft 0.19"):
        assert said in card


@pytest.mark.parametrize("name", ["../models/me/llava", "models/llava"])
def test_of_a_folder_only_its_last_name_is_told(plan, name):
    card = card_of(replace(plan, model_name=name, adapter="/home/me/first"), REPORT, whole=False)
    assert "base_model" not in front_matter(card) and '"llava"' in card and "| started from | another adapter |" in card
    for private in (name, str(plan.model), "/home/me"):
        assert private not in card


def test_a_whole_model_is_loaded_without_peft_and_without_a_report(plan):
    card = card_of(plan, {}, whole=True)
    assert front_matter(card)["library_name"] == "transformers"
    assert "PeftModel" not in card and "## Results" not in card and "None" not in card
