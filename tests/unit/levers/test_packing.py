"""What packing and the varlen kernel become in a plan, and what is said where they cannot be."""

import pytest

from vlmtune.config.schema import TrainingConfig
from vlmtune.errors import VlmtuneError
from vlmtune.hub.source import ModelSource
from vlmtune.levers.batch import BATCH
from vlmtune.levers.speed import varlen
from vlmtune.levers.speed.packing import DEFAULT_TOKENS, PACKING
from vlmtune.plan.decide import make_plan
from vlmtune.plan.types import Device

CARD, OLD_CARD, CPU = (
    Device("cuda", "A100", bf16=True),
    Device("cuda", "T4", bf16=False),
    Device("cpu", "CPU", bf16=False),
)
LLAVA = {"model_type": "llava", "vision_config": {"image_size": 336}, "text_config": {}}
QWEN_VL = {
    "model_type": "qwen",
    "visual": {"image_size": 448},
    "vocab_size": 100,
    "num_hidden_layers": 2,
}
QWEN2_5_VL = {
    "model_type": "qwen2_5_vl",
    "vision_config": {},
    "text_config": {"vocab_size": 100, "num_hidden_layers": 2},
}


def config_of(hardware=(), **training):
    values = {"model": {"name": "org/model"}, "data": {"train_path": "rows.jsonl"}}
    return TrainingConfig.model_validate(values | {"training": training, "hardware": dict(hardware)})


def plan_of(config=LLAVA, device=CARD, hardware=(), **training):
    return make_plan(config_of(hardware, **training), ModelSource("org/model", config, {}), device)


def test_rows_are_packed_where_it_is_asked_for_and_the_rows_of_a_step_stay():
    assert plan_of().pack_tokens == plan_of(packing=False).pack_tokens == 0
    plan = plan_of(packing=True, gradient_accumulation_steps=12)
    assert (plan.pack_tokens, plan.rows_per_step) == (DEFAULT_TOKENS, 12)
    assert plan_of(packing=True, pack_tokens=640).pack_tokens == 640


def test_packs_are_offered_no_batches():
    def offered(**training):
        config = config_of(gradient_accumulation_steps=16, **training)
        return BATCH.spending.levels(config, None, 300), BATCH.more(config, None)

    levels, more = offered()
    assert [level["training.batch_size"] for level in levels] == [2, 4, 8, 16] and len(more) == 1
    assert offered(packing=True) == ([], [])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"model_type": "instructblip", "text_config": {"model_type": "llama"}},
            "instructblip models cannot be packed: their Q-Former reads each row's",
        ),
        ({"model_type": "mllama"}, "mllama models cannot be packed: nobody has shown that their rows do not see"),
        (
            {
                "model_type": "lfm2_vl",
                "text_config": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
            },
            "layers of conv carry",
        ),
        (
            LLAVA | {"text_config": {"num_hidden_layers": 1, "layer_types": ["linear_attention"]}},
            "layers of linear_attention carry",
        ),
    ],
)
def test_models_that_cannot_be_packed_are_named(config, words):
    with pytest.raises(VlmtuneError, match=words):
        plan_of(config, packing=True)


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"packing": True, "batch_size": 4}, "set training.batch_size: 1"),
        ({"packing": True, "gradient_accumulation_steps": 1}, "a step has one row"),
        ({"pack_tokens": 640}, "nothing is packed without training.packing: true"),
    ],
)
def test_values_that_make_no_sense_together(training, words):
    with pytest.raises(VlmtuneError, match=words):
        plan_of(**training)


def test_qwen_vl_takes_packs_up_to_the_length_of_its_positions():
    assert plan_of(QWEN_VL, packing=True).pack_tokens == 2048
    with pytest.raises(VlmtuneError, match="use at most 2048|above 2048"):
        plan_of(QWEN_VL, packing=True, pack_tokens=4096)


def test_smaller_packs_come_before_none():
    config = TrainingConfig.model_validate(
        {"model": {"name": "m"}, "data": {"train_path": "r"}, "training": {"packing": True}}
    )
    (saving,) = PACKING.savings
    assert saving.steps(config, None, 0) == [
        {"training.pack_tokens": 1024},
        {"training.pack_tokens": 512},
        {"training.packing": False, "training.pack_tokens": None},
    ]


@pytest.mark.parametrize(
    ("config", "device", "hardware", "packing", "reason"),
    [
        (QWEN2_5_VL, CARD, {}, False, None),
        (LLAVA, CARD, {}, True, None),
        (LLAVA, CARD, {}, False, "nothing is packed, and the tower calls attention once a layer"),
        (LLAVA, CPU, {}, True, "training runs on the CPU, which has no such kernel"),
        (LLAVA, OLD_CARD, {}, True, "T4 has no such kernel, which Ampere and newer cards have"),
        (LLAVA, CARD, {"mixed_precision": "no"}, True, "the kernel computes in 16 bits"),
    ],
)
def test_the_varlen_kernel_is_taken_where_there_is_one_and_it_saves_calls(config, device, hardware, packing, reason):
    plan = plan_of(config, device, {**hardware, "varlen_attention": True}, packing=packing)
    said = [choice.reason for choice in plan.choices if choice.key == "hardware.varlen_attention"]
    assert (plan.varlen_attention, said) == (
        reason is None,
        [f"{reason}: rows and windows attend without it"] if reason else [],
    )


@pytest.mark.parametrize("auto", [False, True])
@pytest.mark.parametrize(("config", "device"), [(QWEN2_5_VL, CARD), (QWEN2_5_VL, CPU), (LLAVA, CARD)])
def test_by_itself_the_varlen_kernel_is_taken_or_not_without_a_word(config, device, auto, monkeypatch):
    monkeypatch.setattr(varlen, "AUTO", auto)
    plan = plan_of(config, device)
    assert plan.varlen_attention == (auto and config is QWEN2_5_VL and device is CARD)
    assert not [choice for choice in plan.choices if choice.key == varlen.KEY]
