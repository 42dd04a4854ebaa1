"""The table of plans that `make plans` writes."""

import importlib.util
import json
from pathlib import Path

import pytest

from vlmtune.config.load import preset_config
from vlmtune.units import GIB

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def plans():
    spec = importlib.util.spec_from_file_location("plans", DOCS / "plans.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(model: str, preset: str, words: list[str], fits: bool = True) -> dict:
    sizes = {"unchanged_bytes": 9 * GIB, "peak_reserved_bytes": 6 * GIB, "budget_bytes": 7 * GIB}
    return {"preset": preset, "model": model, "fits": fits, "words": words, **sizes}


def test_each_change_is_named_once_and_what_goes_with_it_is_left_out(plans):
    small, large = (plans.tunable()[place].model_id for place in (0, -1))
    words = ["training.batch_size=2", "training.gradient_accumulation_steps=16", "data.max_length=256"]
    text = plans.table([row(large, "8gb", [], fits=False), row(small, "8gb", words), row(small, "6gb", [])])
    first, second = (line for line in text.splitlines() if small in line)
    assert first == f"| {small} | 9.00 | 6.00 | 7.00 | nothing |"
    assert second == f"| {small} | 9.00 | 6.00 | 7.00 | batch_size 2, max_length 256 |"
    assert text.index("## 6gb") < text.index(first) < text.index("## 8gb") < text.index(second)
    assert f"| {large} | 9.00 | 6.00 | 7.00 | **does not fit** |" in text
    assert text.splitlines()[2].startswith(f"3 of {2 * len(plans.tunable())} pairs")


def test_what_was_planned_is_not_planned_again(plans, monkeypatch, tmp_path):
    model = plans.tunable()[0].model_id
    monkeypatch.setattr(plans, "PLANS", tmp_path / "plans.jsonl")
    monkeypatch.setattr(plans, "TABLE", tmp_path / "plans.md")
    monkeypatch.setattr("sys.argv", ["plans.py", model])
    made = []

    def plan_one(entry, preset):
        made.append(preset)
        if len(made) == 2:
            raise KeyboardInterrupt
        return row(entry.model_id, preset, []) | {"seconds": 1.0}

    monkeypatch.setattr(plans, "plan_one", plan_one)
    with pytest.raises(KeyboardInterrupt):
        plans.main()
    plans.main()
    assert made == ["6gb", "8gb", "8gb"]
    assert "2 of " in (tmp_path / "plans.md").read_text()


def test_the_table_holds_what_was_planned_and_every_plan_is_a_config(plans):
    if not plans.PLANS.exists():
        pytest.skip("no plans have been made: make plans")
    rows = [json.loads(line) for line in plans.PLANS.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len({(one["preset"], one["model"]) for one in rows})
    for one in rows:
        assert preset_config(one["model"], one["preset"], one["words"])
        assert not one["fits"] or one["peak_reserved_bytes"] <= 0.97 * one["budget_bytes"]
    assert plans.TABLE.read_text(encoding="utf-8") == plans.table(plans.read_plans())
