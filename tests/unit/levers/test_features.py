"""When images are encoded before training: as the user says, or where it saves time and finds room."""

from dataclasses import dataclass

import pytest

from vlmtune.config.load import preset_config
from vlmtune.errors import VlmtuneError
from vlmtune.hub.source import ModelSource
from vlmtune.plan.decide import make_plan
from vlmtune.plan.types import Device, RunPlan
from vlmtune.units import GIB

LLAVA = {"model_type": "llava", "vision_config": {"image_size": 336, "patch_size": 14}}
TEXT = {"text_config": {"hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 32064}}
SOURCE = ModelSource("org/model", LLAVA | TEXT, {})
CARD, CPU = Device("cuda", "RTX 4060", bf16=True), Device("cpu", "CPU", bf16=False)


@dataclass
class Rows:
    """Rows of one image each."""

    num_rows: int = 1000
    num_images: int = 1000
    free: int | None = 10**12

    def image_tokens(self, plan: RunPlan, model) -> int:
        return 576 * self.num_images

    def free_cache_bytes(self) -> int | None:
        return self.free


def plan_with(*words: str, device: Device = CARD, rows: Rows | None = None, source: ModelSource = SOURCE) -> RunPlan:
    return make_plan(preset_config("org/model", "8gb", words).config, source, device, rows=rows)


def reason(plan: RunPlan) -> str:
    [choice] = [choice for choice in plan.choices if choice.key == "data.cache_features"]
    assert choice.value == str(plan.cache_features).lower()
    return choice.reason


@pytest.mark.parametrize(
    ("words", "device", "rows", "expected"),
    [
        (("training.num_epochs=3",), CARD, None, "it encodes every image once"),
        (("training.num_epochs=3",), CARD, Rows(), "it encodes every image once"),
        (("training.num_epochs=1",), CARD, Rows(), "every image is seen once"),
        (("training.num_epochs=3",), CPU, Rows(), "training runs on the CPU"),
        (("training.num_epochs=3", "training.lora.vision_tower=true"), CARD, Rows(), "the vision tower learns"),
        (("training.num_epochs=3",), CARD, Rows(8, 8), "8 images: 16 passes of the tower are fewer"),
        (("training.num_epochs=3", "training.max_steps=40"), CARD, Rows(), "280 passes of the tower are fewer"),
        (("training.num_epochs=3", "data.cache_features_gib=4"), CARD, Rows(), "above data.cache_features_gib: 4"),
        (("training.num_epochs=3",), CARD, Rows(free=4 * GIB), "the disk of the cache folder has less to spare"),
        (("training.num_epochs=3",), CARD, Rows(free=None), "the disk of the cache folder has less to spare"),
    ],
)
def test_auto_is_on_where_it_saves_time_and_finds_room(words, device, rows, expected):
    plan = plan_with(*words, device=device, rows=rows)
    assert expected in reason(plan)
    assert plan.cache_features == (expected == "it encodes every image once")


def test_what_the_user_says_is_done_without_a_reason():
    for wish in (True, False):
        plan = plan_with(f"data.cache_features={str(wish).lower()}", device=CPU, rows=Rows(1, 1))
        assert plan.cache_features is wish
        assert "data.cache_features" not in {choice.key for choice in plan.choices}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("training.lora.vision_tower=true",), "data.cache_features: true, but the vision tower learns"),
        (("training.method=full",), "data.cache_features: true, but method full saves the whole model"),
    ],
)
def test_what_cannot_be_is_refused(words, expected):
    with pytest.raises(VlmtuneError) as raised:
        plan_with("data.cache_features=true", *words)
    assert raised.value.message.startswith(expected)


def test_a_family_whose_tower_reads_the_text_is_refused_by_name_and_left_alone_by_auto():
    source = ModelSource("org/model", {"model_type": "instructblip", "text_config": {"model_type": "llama"}}, {})
    with pytest.raises(VlmtuneError, match="instructblip models cannot have their images encoded before"):
        plan_with("data.cache_features=true", source=source)
    plan = plan_with("training.num_epochs=3", source=source, rows=Rows())
    assert not plan.cache_features and "the Q-Former reads the question" in reason(plan)


def test_deep_features_are_counted():
    from vlmtune.levers.features import bytes_per_token

    deep = {"deepstack_visual_indexes": [8, 16, 24]}
    model = ModelSource("org/model", {**TEXT, "vision_config": deep}, {}).facts("m")
    assert bytes_per_token(plan_with(), model) == 4 * 4096 * 2
    assert bytes_per_token(plan_with(device=CPU), SOURCE.facts("m")) == 4096 * 4
