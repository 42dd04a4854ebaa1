"""Lean adapters: as the user says, where there are adapters and nothing drops out; else as PEFT does."""

import pytest

from vlmtune.config.load import preset_config
from vlmtune.errors import VlmtuneError
from vlmtune.hub.source import ModelSource
from vlmtune.levers.lora import lean
from vlmtune.plan.decide import make_plan
from vlmtune.plan.types import Device, RunPlan

SOURCE = ModelSource("org/model", {"model_type": "llava", "vision_config": {"image_size": 336}, "text_config": {}}, {})


def plan_with(*words: str) -> RunPlan:
    return make_plan(preset_config("org/model", "8gb", words).config, SOURCE, Device("cpu", "CPU", bf16=False))


def said(plan: RunPlan) -> list[tuple[str, str]]:
    return [(choice.value, choice.reason) for choice in plan.choices if choice.key == lean.KEY]


@pytest.mark.parametrize("auto", [False, True])
@pytest.mark.parametrize(("wish", "decided"), [("auto", None), ("true", True), ("false", False)])
def test_it_is_as_the_user_says(auto, wish, decided, monkeypatch):
    monkeypatch.setattr(lean, "AUTO", auto)
    plan = plan_with(f"hardware.lean_lora={wish}")
    assert plan.lean_lora is (auto if decided is None else decided) and said(plan) == []


@pytest.mark.parametrize("wish", ["auto", "true"])
def test_with_dropout_peft_computes_and_the_plan_says_so(wish, monkeypatch):
    monkeypatch.setattr(lean, "AUTO", True)
    plan = plan_with(f"hardware.lean_lora={wish}", "training.lora.dropout=0.1")
    assert not plan.lean_lora and said(plan) == [("false", lean.DROPS)]
    assert said(plan_with("hardware.lean_lora=false", "training.lora.dropout=0.1")) == []


def test_method_full_has_no_adapters(monkeypatch):
    full = ("training.method=full", "training.optim=adamw")
    with pytest.raises(VlmtuneError, match=r"hardware\.lean_lora: method full has no adapters"):
        plan_with("hardware.lean_lora=true", *full)
    monkeypatch.setattr(lean, "AUTO", True)
    assert not plan_with(*full).lean_lora
