"""Elementwise work in one kernel: as the user says, where Triton makes kernels."""

from dataclasses import replace

import pytest

from vlmtune.config.load import preset_config
from vlmtune.estimate.scenario import Scenario
from vlmtune.hardware.cards import Target, find_card
from vlmtune.hub.source import ModelSource
from vlmtune.levers.speed import elementwise
from vlmtune.plan.decide import make_plan
from vlmtune.plan.types import Device, RunPlan

SOURCE = ModelSource("org/model", {"model_type": "llava", "vision_config": {"image_size": 336}, "text_config": {}}, {})
CARD = Device("cuda", "RTX 4060", bf16=True)
TURING, CPU = Device("cuda", "RTX 2080", bf16=False), Device("cpu", "CPU", bf16=False)
NO_COMPILER = replace(CARD, no_triton="there is no C compiler")


def plan_with(device: Device, wish: str) -> RunPlan:
    return make_plan(preset_config("org/model", "8gb", [f"hardware.fused_elementwise={wish}"]).config, SOURCE, device)


def said(plan: RunPlan) -> list[tuple[str, str]]:
    return [(choice.value, choice.reason) for choice in plan.choices if choice.key == elementwise.KEY]


@pytest.mark.parametrize("auto", [False, True])
@pytest.mark.parametrize(("wish", "decided"), [("auto", None), ("true", True), ("false", False)])
def test_it_is_as_the_user_says(auto, wish, decided, monkeypatch):
    monkeypatch.setattr(elementwise, "AUTO", auto)
    plan = plan_with(CARD, wish)
    assert plan.fused_elementwise is (auto if decided is None else decided) and said(plan) == []


@pytest.mark.parametrize(
    ("device", "reason", "is_told"),
    [
        (CPU, "training runs on the CPU, for which Triton makes no kernels", False),
        (TURING, "Triton makes no kernels for RTX 2080, but for Ampere and newer cards", False),
        (NO_COMPILER, "there is no C compiler", True),
    ],
)
def test_where_it_cannot_be_one_line_says_why(device, reason, is_told, monkeypatch):
    monkeypatch.setattr(elementwise, "AUTO", True)
    line = ("false", f"{reason}: the library's own code runs")
    plans = [plan_with(device, wish) for wish in ("true", "auto", "false")]
    assert not any(plan.fused_elementwise for plan in plans)
    assert [said(plan) for plan in plans] == [[line], [line] if is_told else [], []]


@pytest.mark.parametrize("reason", [None, "there is no C compiler"])
def test_an_estimate_for_the_card_here_knows_what_the_machine_lacks(reason):
    loaded = preset_config("org/model", "8gb", ["hardware.fused_elementwise=true"])
    target = Target(find_card("rtx-4060"), 7 * 2**30, True, no_triton=reason)
    assert Scenario(loaded, SOURCE, target).plan.fused_elementwise is (reason is None)
