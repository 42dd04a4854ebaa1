"""What of a plan may differ when a run goes on, and what may not."""

import dataclasses

from vlmtune.config.schema import TrainingConfig
from vlmtune.hub.source import ModelSource
from vlmtune.plan.decide import make_plan
from vlmtune.plan.resume import FREE_FIELDS, differences
from vlmtune.plan.types import Device, RunPlan

LLAVA = {"model_type": "llava", "vision_config": {"image_size": 336, "patch_size": 14}, "text_config": {}}


def plan(**sections) -> RunPlan:
    values = {"model": {"name": "org/model"}, "data": {"train_path": "rows.jsonl"}}
    config = TrainingConfig.model_validate({**values, **sections})
    return make_plan(config, ModelSource("org/model", LLAVA, {}), Device("cpu", "CPU", bf16=False), "digest")


def test_differences_name_what_decides_the_result():
    one, other = plan(), plan(training={"learning_rate": 1e-3, "seed": 7})
    assert differences(other, one) == ["learning_rate: 0.0002 -> 0.001", "seed: 42 -> 7"]
    assert differences(one, one) == []


def test_values_that_may_change_on_resume():
    names = {item.name for item in dataclasses.fields(RunPlan)}
    assert FREE_FIELDS <= names
    changed = plan(
        training={
            **{"save_steps": 7, "save_minutes": 7.0, "logging_steps": 7, "save_total_limit": 7},
            "report_to": ("tensorboard",),
        },
        hardware={"num_workers": 3, "gradient_checkpointing": False},
    )
    assert differences(changed, plan()) == []


def test_the_rows_of_a_step_may_be_divided_otherwise_but_stay_the_same_rows():
    two_by_four = plan(training={"batch_size": 2, "gradient_accumulation_steps": 4})
    assert differences(two_by_four, plan(training={"batch_size": 1, "gradient_accumulation_steps": 8})) == []
    assert differences(two_by_four, plan(training={"batch_size": 1, "gradient_accumulation_steps": 4})) == [
        "batch_size: 1 -> 2"
    ]
    assert two_by_four.rows_per_step == 8


def test_before_the_first_checkpoint_a_run_begins_anew_and_more_may_change():
    begun, now = plan(), plan(data={"train_path": "rows.jsonl", "image_size": 224}, training={"weight_decay": 0.1})
    assert differences(now, begun) == ["image_size: None -> 224", "weight_decay: 0.0 -> 0.1"]
    assert differences(now, begun, has_checkpoint=False) == ["weight_decay: 0.0 -> 0.1"]


def test_a_run_from_before_rows_could_hold_boxes_goes_on():
    now = dataclasses.replace(plan(), boxes="qwen2_5_vl")
    assert differences(now, dataclasses.replace(now, boxes="")) == []
    assert differences(now, dataclasses.replace(now, boxes="qwen2_vl")) == ["boxes: qwen2_vl -> qwen2_5_vl"]
