"""How many GPUs a run takes, and how they share the rows of a step."""

from dataclasses import replace

import pytest

from vlmtune.config.load import preset_config
from vlmtune.errors import VlmtuneError
from vlmtune.hub.source import ModelSource
from vlmtune.levers.gpus.number import num_gpus
from vlmtune.levers.gpus.shard import SHARD
from vlmtune.plan.decide import make_plan
from vlmtune.plan.resume import differences
from vlmtune.plan.types import Device

SOURCE = ModelSource("org/model", {"model_type": "llava", "vision_config": {"image_size": 336}, "text_config": {}}, {})
FOUR = Device("cuda", "RTX 4090", bf16=True, num_gpus=4)
TWO_STARTED = replace(FOUR, num_gpus=2, launched=True)
ANY = replace(FOUR, num_gpus=None)


def config_with(*words: str):
    return preset_config("org/model", "8gb", words).config


def plan_of(*words: str, device: Device = FOUR):
    return make_plan(config_with(*words), SOURCE, device)


@pytest.mark.parametrize(
    ("wish", "device", "number"),
    [
        (None, FOUR, 1),
        ("1", FOUR, 1),
        ("3", FOUR, 3),
        ("auto", FOUR, 4),
        (None, TWO_STARTED, 2),
        ("auto", TWO_STARTED, 2),
        ("2", TWO_STARTED, 2),
        ("8", ANY, 8),
        ("auto", ANY, 1),
        ("auto", Device("cpu", "CPU", bf16=False, num_gpus=0), 1),
        ("1", Device("cpu", "CPU", bf16=False, num_gpus=0), 1),
    ],
)
def test_how_many(wish, device, number):
    config = config_with(*([f"hardware.num_gpus={wish}"] if wish else []))
    assert num_gpus(config, device) == number


@pytest.mark.parametrize(
    ("wish", "device", "said"),
    [
        (5, FOUR, "5 GPUs are asked for, 4 are here"),
        (2, replace(FOUR, num_gpus=1), "2 GPUs are asked for, 1 is here"),
        (4, TWO_STARTED, "4, and the launcher has started 2 processes"),
        (1, TWO_STARTED, "1, and the launcher has started 2 processes"),
    ],
)
def test_a_number_that_is_not_there_is_refused(wish, device, said):
    with pytest.raises(VlmtuneError, match=f"^hardware.num_gpus: {said}"):
        plan_of(f"hardware.num_gpus={wish}", device=device)


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "gpus", "becomes"),
    [(2, 4, 4, (2, 4, 1)), (2, 4, 3, (2, 4, 2)), (4, 2, 4, (2, 4, 1)), (9, 1, 4, (1, 9, 3)), (4, 1, 4, (1, 4, 1))],
)
def test_a_step_keeps_its_rows(batch_size, accumulation, gpus, becomes):
    words = (f"training.batch_size={batch_size}", f"training.gradient_accumulation_steps={accumulation}")
    plan = plan_of(*words, f"hardware.num_gpus={gpus}")
    assert (plan.batch_size, plan.gradient_accumulation_steps, plan.passes_per_step) == becomes
    assert plan.rows_per_step == batch_size * accumulation
    said = [choice.reason for choice in plan.choices if choice.key == "training.batch_size"]
    assert bool(said) == (plan.batch_size != batch_size)


def test_fewer_rows_than_gpus_are_refused():
    words = ("training.batch_size=1", "training.gradient_accumulation_steps=3")
    with pytest.raises(VlmtuneError, match="4 GPUs have nothing to share: an optimizer step has 3 rows"):
        plan_of(*words, "hardware.num_gpus=auto")


SHARED = "hardware.shard=always"


def test_layers_are_shared_by_several_gpus_only_when_it_is_said():
    assert plan_of("hardware.num_gpus=2", SHARED).sharded
    assert (
        not plan_of("hardware.num_gpus=2").sharded
        and not plan_of("hardware.num_gpus=2", "hardware.shard=never").sharded
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "always needs several GPUs to share the layers, and the run has one"),
        (("training.method=lora",), "method lora has no 4-bit layers to share"),
        (("training.method=full",), "method full has no 4-bit layers to share"),
        (("hardware.num_gpus=2", "hardware.streamed_layers=4"), "layers come from the other GPUs or from main memory"),
    ],
)
def test_layers_that_cannot_be_shared_are_refused(words, said):
    with pytest.raises(VlmtuneError, match=f"^hardware.shard: {said}"):
        plan_of(*words, SHARED)


def test_sharing_is_proposed_where_it_can_be():
    def proposed(*words: str) -> list:
        return SHARD.savings[0].steps(config_with(*words), None, 0)

    assert proposed("hardware.num_gpus=2") == proposed("hardware.num_gpus=auto") == [{"hardware.shard": "always"}]
    for words in ((), ("hardware.shard=never",), ("training.method=lora",), ("hardware.streamed_layers=4",)):
        assert proposed("hardware.num_gpus=2" if words else "hardware.num_gpus=1", *words) == []


def test_a_run_goes_on_with_any_number():
    rows = ("training.batch_size=4", "training.gradient_accumulation_steps=1")
    alone, four = plan_of(*rows), plan_of(*rows, "hardware.num_gpus=4")
    assert alone.batch_size != four.batch_size
    assert differences(four, alone, num_rows=8) == differences(alone, four, num_rows=8) == []
