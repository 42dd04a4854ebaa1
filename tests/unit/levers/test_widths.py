"""Widths are filled up as the user says, by themselves on a GPU, and never where the weights are trained."""

import pytest

from vlmtune.config.load import preset_config
from vlmtune.errors import VlmtuneError
from vlmtune.hub.source import ModelSource
from vlmtune.levers.speed import widths
from vlmtune.plan.decide import make_plan
from vlmtune.plan.types import Device, RunPlan

SOURCE = ModelSource("org/model", {"model_type": "llava", "vision_config": {"image_size": 336}, "text_config": {}}, {})
CARD, CPU = Device("cuda", "RTX 4060", bf16=True), Device("cpu", "CPU", bf16=False)
FULL = ("training.method=full", "training.optim=adamw")


def plan_with(device: Device, *words: str) -> RunPlan:
    return make_plan(preset_config("org/model", "8gb", words).config, SOURCE, device)


@pytest.mark.parametrize("auto", [False, True])
@pytest.mark.parametrize("device", [CARD, CPU])
@pytest.mark.parametrize(("wish", "decided"), [("auto", None), ("true", True), ("false", False)])
def test_they_are_as_the_user_says(auto, device, wish, decided, monkeypatch):
    monkeypatch.setattr(widths, "AUTO", auto)
    plan = plan_with(device, f"hardware.align_widths={wish}")
    assert plan.align_widths is ((auto and device is CARD) if decided is None else decided)


def test_method_full_trains_the_weights():
    assert not plan_with(CARD, *FULL).align_widths
    with pytest.raises(VlmtuneError, match=r"hardware\.align_widths: method full trains the weights"):
        plan_with(CARD, "hardware.align_widths=true", *FULL)
