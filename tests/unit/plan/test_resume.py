"""What of a plan may differ when a run goes on, and what may not."""

import dataclasses

from vlmtune.config.schema import TrainingConfig
from vlmtune.hub.source import ModelSource
from vlmtune.plan.decide import make_plan
from vlmtune.plan.resume import FREE_FIELDS, differences, is_longer, told_of_longer
from vlmtune.plan.types import Device, RunPlan

LLAVA = {"model_type": "llava", "vision_config": {"image_size": 336, "patch_size": 14}, "text_config": {}}


def plan(**sections) -> RunPlan:
    values = {"model": {"name": "org/model"}, "data": {"train_path": "rows.jsonl"}}
    config = TrainingConfig.model_validate({**values, **sections})
    return make_plan(config, ModelSource("org/model", LLAVA, {}), Device("cpu", "CPU", bf16=False), "digest")


def test_differences_name_what_decides_the_result():
    one, other = plan(), plan(training={"learning_rate": 1e-3, "seed": 7})
    assert differences(other, one, num_rows=7) == ["learning_rate: 0.0002 -> 0.001", "seed: 42 -> 7"]
    assert differences(one, one, num_rows=7) == []


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
    assert differences(changed, plan(), num_rows=7) == []


def test_the_rows_of_a_step_may_be_divided_otherwise_but_stay_the_same_rows():
    two_by_four = plan(training={"batch_size": 2, "gradient_accumulation_steps": 4})
    assert (
        differences(two_by_four, plan(training={"batch_size": 1, "gradient_accumulation_steps": 8}), num_rows=7) == []
    )
    assert differences(two_by_four, plan(training={"batch_size": 1, "gradient_accumulation_steps": 4}), num_rows=7) == [
        "batch_size: 1 -> 2"
    ]
    assert two_by_four.rows_per_step == 8


def test_before_the_first_checkpoint_a_run_begins_anew_and_more_may_change():
    begun, now = plan(), plan(data={"train_path": "rows.jsonl", "image_size": 224}, training={"weight_decay": 0.1})
    assert differences(now, begun, num_rows=7) == ["image_size: None -> 224", "weight_decay: 0.0 -> 0.1"]
    assert differences(now, begun, num_rows=7, has_checkpoint=False) == ["weight_decay: 0.0 -> 0.1"]


def test_a_run_from_before_rows_could_hold_boxes_goes_on():
    now = dataclasses.replace(plan(), boxes="qwen2_5_vl")
    assert differences(now, dataclasses.replace(now, boxes=""), num_rows=7) == []
    assert differences(now, dataclasses.replace(now, boxes="qwen2_vl"), num_rows=7) == ["boxes: qwen2_vl -> qwen2_5_vl"]


def test_a_run_may_be_made_longer_and_not_shorter():
    two, three = plan(training={"num_epochs": 2.0}), plan(training={"num_epochs": 3.0})
    assert differences(three, two, num_rows=7) == []
    assert differences(two, three, num_rows=7) == ["num_epochs: 3.0 -> 2.0"]
    assert differences(plan(training={"max_steps": 9}), two, num_rows=7) == [], "14 rows are 4 steps"
    short = plan(training={"max_steps": 1})
    assert differences(short, two, num_rows=700) == ["num_epochs: 2.0 -> 1.0", "max_steps: None -> 1"]
    assert is_longer(three, two, num_rows=7) and not is_longer(two, two, num_rows=7)


def test_who_makes_a_run_longer_is_told_whether_one_long_run_would_be_the_same():
    begun = {"num_epochs": 2.0, "gradient_accumulation_steps": 1}
    now = {**begun, "num_epochs": 3.0}
    said = told_of_longer(plan(training=now), plan(training=begun), num_rows=7)
    assert said.startswith("21 steps in place of 14: ") and "will not be those of one long run" in said
    constant = {"lr_scheduler_type": "constant"}
    said = told_of_longer(plan(training=now | constant), plan(training=begun | constant), num_rows=7)
    assert "will be those of one long run" in said
    assert told_of_longer(plan(training=begun), plan(training=now), num_rows=7) is None


def test_a_run_from_before_only_parts_without_sdpa_were_eager_goes_on_and_none_loses_its_cap():
    sdpa = plan()
    eager = dataclasses.replace(sdpa, attention="eager")
    assert differences(sdpa, eager, num_rows=7) == []
    assert differences(eager, sdpa, num_rows=7) == ["attention: sdpa -> eager"]
