"""Constants are joined as the user says, by themselves on a GPU, and never where they are not packed."""

import pytest

from vlmtune.config.load import preset_config
from vlmtune.errors import VlmtuneError
from vlmtune.hub.source import ModelSource
from vlmtune.levers.speed import constants
from vlmtune.plan.decide import make_plan
from vlmtune.plan.types import Device, RunPlan

SOURCE = ModelSource("org/model", {"model_type": "llava", "vision_config": {"image_size": 336}, "text_config": {}}, {})
CARD, CPU = Device("cuda", "RTX 4060", bf16=True), Device("cpu", "CPU", bf16=False)
WITHOUT = [
    (("training.method=lora",), "only weights in 4 bits have constants"),
    (("training.quantization.bnb_4bit_use_double_quant=false",), "constants are not packed"),
]


def plan_with(device: Device, *words: str) -> RunPlan:
    return make_plan(preset_config("org/model", "8gb", words).config, SOURCE, device)


@pytest.mark.parametrize("auto", [False, True])
@pytest.mark.parametrize("device", [CARD, CPU])
@pytest.mark.parametrize(("wish", "decided"), [("auto", None), ("true", True), ("false", False)])
def test_they_are_as_the_user_says(auto, device, wish, decided, monkeypatch):
    monkeypatch.setattr(constants, "AUTO", auto)
    plan = plan_with(device, f"hardware.joined_constants={wish}")
    assert plan.joined_constants is ((auto and device is CARD) if decided is None else decided)


@pytest.mark.parametrize(("words", "reason"), WITHOUT, ids=str)
def test_where_there_is_nothing_to_join_auto_is_off_and_true_an_error(words, reason):
    assert not plan_with(CARD, *words).joined_constants
    with pytest.raises(VlmtuneError, match=rf"hardware\.joined_constants: .*{reason}"):
        plan_with(CARD, "hardware.joined_constants=true", *words)
