"""plan.json: what is written is read, also by later versions; everything else is refused in one sentence."""

import dataclasses
import json
from contextlib import suppress
from pathlib import Path

import pytest

from vlmtune.config.schema import TrainingConfig
from vlmtune.errors import VlmtuneError
from vlmtune.hub.source import ModelSource
from vlmtune.plan import file, migrations
from vlmtune.plan.decide import make_plan
from vlmtune.plan.file import load_plan, save_plan
from vlmtune.plan.migrations import MIGRATIONS, VERSION, Migration
from vlmtune.plan.types import Device, RunPlan

OF_0_1_0 = Path(__file__).parents[2] / "e2e" / "run-0.1.0" / "project" / "runs" / "finished" / "plan.json"
QWEN = {"model_type": "qwen2_5_vl", "vision_config": {"patch_size": 14}, "vocab_size": 151_936}


@pytest.fixture
def plan() -> RunPlan:
    config = TrainingConfig.model_validate(
        {
            "model": {"name": "org/model"},
            "data": {"train_path": "r", "image_size": 448},
            "training": {"report_to": ("tensorboard",)},
        }
    )
    return make_plan(config, ModelSource("org/model", QWEN, {}), Device("cpu", "CPU", bf16=False), "digest")


@pytest.fixture
def path(tmp_path, plan) -> Path:
    """The file of a plan."""
    save_plan(plan, tmp_path / "plan.json")
    return tmp_path / "plan.json"


GONE = object()


def change(path, **values):
    """Put other values into the file; GONE takes a key out."""
    changed = json.loads(path.read_text()) | {"sha256": GONE} | values
    path.write_text(json.dumps({key: value for key, value in changed.items() if value is not GONE}))


def test_saved_and_loaded(plan, path):
    assert plan.image_overrides and plan.choices and plan.report_to
    assert load_plan(path) == plan
    assert json.loads(path.read_text())["version"] == VERSION


def test_a_model_folder_is_saved_relative_to_the_plan(tmp_path, plan):
    (tmp_path / "model").mkdir()
    (tmp_path / "runs" / "a").mkdir(parents=True)
    made = dataclasses.replace(plan, model=str(tmp_path / "model"))
    path = tmp_path / "runs" / "a" / "plan.json"
    save_plan(made, path)
    assert json.loads(path.read_text())["model"] == "../../model"
    assert load_plan(path) == made


def test_a_plan_of_another_version_is_refused(path):
    values = json.loads(path.read_text())
    values["new_key"], _ = values.pop("seed"), values.pop("sha256")
    path.write_text(json.dumps(values))
    with pytest.raises(VlmtuneError, match="another version of vlmtune: keys that differ: new_key, seed"):
        load_plan(path)


def test_a_key_inside_a_choice_is_named_too(path):
    change(path, choices=[{"key": "a", "value": "b", "reason": "c", "new": 1}])
    with pytest.raises(VlmtuneError, match=r"keys that differ: choices\.0\.new\n"):
        load_plan(path)


def test_a_field_that_did_not_exist_yet_has_its_default(path, plan):
    change(path, choices=GONE)
    assert load_plan(path) == dataclasses.replace(plan, choices=())


def test_a_plan_of_0_1_0_has_no_version_and_is_read():
    assert "version" not in json.loads(OF_0_1_0.read_text(encoding="utf-8"))
    plan = load_plan(OF_0_1_0)
    assert (plan.method, plan.lora_rank, plan.batch_size, len(plan.choices)) == ("qlora", 2, 1, 2)
    assert Path(plan.model) == OF_0_1_0.parents[2] / "model"


def test_the_plan_of_a_newer_vlmtune_is_refused(path):
    change(path, version=VERSION + 1, a_new_key=3)
    with pytest.raises(VlmtuneError) as refused:
        load_plan(path)
    assert refused.value.message == (
        f"{path} was written by a newer vlmtune: its format is {VERSION + 1}, this vlmtune reads up to {VERSION}"
    )
    assert refused.value.hint == "update vlmtune, or train again"


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "null", "3", '{"version": "1"}', '{"version": true}', '{"version": -1}']
)
def test_a_damaged_file_is_told(path, text):
    path.write_text(text)
    with pytest.raises(VlmtuneError, match=r"plan\.json is damaged") as told:
        load_plan(path)
    assert told.value.hint == "delete the run folder and train again"


def test_no_byte_changes_in_silence(path, plan):
    written = path.read_bytes()
    for place in range(0, len(written), 9):
        path.write_bytes(written[:place] + bytes([written[place] ^ 1]) + written[place + 1 :])
        with suppress(VlmtuneError):
            assert load_plan(path) == plan, written[place - 20 : place + 20]


def test_a_value_of_another_type_is_named(path):
    change(path, seed="1", unquantized=[2])
    with pytest.raises(VlmtuneError) as told:
        load_plan(path)
    assert told.value.message == (
        f"{path} is damaged: unquantized.0: Input should be a valid string; seed: Input should be a valid integer"
    )


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", r"(.*)*\.x", r".*.*.*.*.*\.(x)", r"model\.(.*)\.(q_proj)", "(" * 5000, "(a|a)" * 40]
)
def test_a_pattern_that_nobody_writes_is_refused(path, pattern):
    """It could be matched for ever: run folders come from other people too."""
    change(path, lora_targets=pattern)
    with pytest.raises(VlmtuneError, match=r"plan\.json is damaged: lora_targets is no pattern"):
        load_plan(path)


def test_every_format_has_one_step_to_the_next():
    assert [migration.from_version for migration in MIGRATIONS] == list(range(VERSION))
    assert all(migration.name for migration in MIGRATIONS)


def test_an_old_plan_takes_the_steps_from_its_format_on(path, plan, monkeypatch):
    def renamed(values):
        return {**values, "seed": values["random_seed"] - 1} if values.pop("doubled") else values

    def without(values):
        return {key: value for key, value in values.items() if key != "random_seed"}

    steps = (*MIGRATIONS, Migration(VERSION, "seed was random_seed", renamed), Migration(VERSION + 1, "gone", without))
    monkeypatch.setattr(migrations, "MIGRATIONS", steps)
    monkeypatch.setattr(file, "VERSION", VERSION + 2)
    change(path, seed=GONE, random_seed=8, doubled=True)
    assert load_plan(path) == dataclasses.replace(plan, seed=7)
    change(path, seed=9, version=VERSION + 1, doubled=GONE)
    assert load_plan(path) == dataclasses.replace(plan, seed=9), "the first step is not for this one"


def test_a_plan_keeps_the_whole_path_of_a_model_on_another_drive(tmp_path, plan, monkeypatch):
    def relpath(path, start):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    (tmp_path / "model").mkdir()
    made = dataclasses.replace(plan, model=str(tmp_path / "model"))
    with monkeypatch.context() as patch:
        patch.setattr("os.path.relpath", relpath)
        save_plan(made, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == made
