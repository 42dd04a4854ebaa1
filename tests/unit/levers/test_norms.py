"""Norms in one kernel: as the user says, on a GPU, where they are frozen."""

import pytest

from vlmtune.config.load import preset_config
from vlmtune.hub.source import ModelSource
from vlmtune.levers.speed import norms
from vlmtune.plan.decide import make_plan
from vlmtune.plan.types import Device, RunPlan

SOURCE = ModelSource("org/model", {"model_type": "llava", "vision_config": {"image_size": 336}, "text_config": {}}, {})
CARD, CPU = Device("cuda", "RTX 4060", bf16=True), Device("cpu", "CPU", bf16=False)
FULL = ("training.method=full", "training.optim=adamw")


def plan_with(device: Device, *words: str) -> RunPlan:
    return make_plan(preset_config("org/model", "8gb", words).config, SOURCE, device)


def said(plan: RunPlan) -> list[tuple[str, str]]:
    return [(choice.value, choice.reason) for choice in plan.choices if choice.key == norms.KEY]


@pytest.mark.parametrize("auto", [False, True])
@pytest.mark.parametrize(("wish", "decided"), [("auto", None), ("true", True), ("false", False)])
def test_they_are_as_the_user_says(auto, wish, decided, monkeypatch):
    monkeypatch.setattr(norms, "AUTO", auto)
    plan = plan_with(CARD, f"hardware.fused_norms={wish}")
    assert plan.fused_norms is (auto if decided is None else decided) and said(plan) == []


@pytest.mark.parametrize(
    ("device", "words", "reason"),
    [
        (CPU, (), "training runs on the CPU, which has no such kernel"),
        (CARD, FULL, "method full trains them in fp32"),
    ],
)
def test_where_they_cannot_be_one_line_says_why(device, words, reason, monkeypatch):
    plan = plan_with(device, "hardware.fused_norms=true", *words)
    assert not plan.fused_norms and said(plan) == [("false", f"{reason}: norms stay the library's")]
    monkeypatch.setattr(norms, "AUTO", True)
    assert not plan_with(device, *words).fused_norms and said(plan_with(device, *words)) == []
