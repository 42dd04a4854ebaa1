"""What is generated from the schema says all of it."""

import json
from pathlib import Path

import pytest
import yaml

from vlmtune.config.docs import all_keys_yaml, config_table_markdown, schema_json
from vlmtune.config.keys import REQUIRED, all_keys, key_at, section_at, section_docs
from vlmtune.config.load import load_config
from vlmtune.config.schema import TrainingConfig

CONFIGS = Path(__file__).parents[3] / "configs"
FILES = sorted(CONFIGS.glob("*.yaml"))


def leaves(model, path=()):
    """Every key of the pydantic models, found without the JSON schema."""
    for name in model.model_fields:
        inner = section_at((*path, name))
        yield from leaves(inner, (*path, name)) if inner else [(*path, name)]


def test_the_json_schema_has_every_key_and_a_description_of_each():
    assert [key.path for key in all_keys()] == list(leaves(TrainingConfig))
    assert len(all_keys()) >= 40
    for key in all_keys():
        assert len(key.meaning) > 10, key.name
        assert key.meaning.endswith("."), key.name
        assert key.allowed, key.name
    assert all(section_docs().values()) and len(section_docs()) == 8


def test_keys_know_their_types():
    rank = key_at(("training", "lora", "rank"))
    assert (rank.allowed, rank.default, rank.json_type) == ("a whole number from 1 to 1024", 16, "integer")
    assert key_at(("training", "report_to", "0")).name == "training.report_to"
    assert key_at(("model", "name")).default is REQUIRED
    assert key_at(("data", "image_size")).nullable
    assert key_at(("training", "optim")).choices == ("adamw", "adamw_8bit", "paged_adamw_8bit")
    head = key_at(("training", "quantization", "quantize_head"))
    assert (head.allowed, head.choices, head.nullable) == ("one of false, true, 8bit", ("false", "true", "8bit"), False)


def test_the_table_has_one_row_a_key():
    rows = config_table_markdown().splitlines()
    assert len(rows) == len(all_keys()) + 2
    assert "| `training.lora.rank` | a whole number from 1 to 1024 | `16` | Rank r of every adapter. |" in rows
    assert all(row.count("|") == 5 for row in rows)


def test_the_shipped_schema_is_the_one_that_validate_prints(run_cli):
    result = run_cli("validate", "--schema")
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout == schema_json() == (CONFIGS / "schema.json").read_text(encoding="utf-8"), (
        "renew it: vlmtune validate --schema > configs/schema.json"
    )
    assert json.loads(result.stdout)["additionalProperties"] is False


def test_all_keys_yaml_is_current_and_at_the_defaults():
    text = (CONFIGS / "all-keys.yaml").read_text(encoding="utf-8")
    assert text == all_keys_yaml(), "renew it from vlmtune.config.docs.all_keys_yaml()"
    loaded = load_config(CONFIGS / "all-keys.yaml")
    assert "default" not in loaded.sources.values()
    minimal = {"model": {"name": loaded.config.model.name}, "data": {"train_path": loaded.config.data.train_path}}
    assert loaded.config == TrainingConfig.model_validate(minimal)


def test_there_is_a_config_for_every_preset():
    assert len(FILES) >= 7
    assert {f"{size}gb.yaml" for size in (6, 8, 12, 16, 24, 48)} | {"all-keys.yaml"} <= {file.name for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_shipped_config_loads_and_names_the_schema(file):
    assert file.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=schema.json\n")
    loaded = load_config(file)
    if file.stem.endswith("gb"):
        assert loaded.config.preset == file.stem
    plain = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert plain["model"]["name"] == loaded.config.model.name
