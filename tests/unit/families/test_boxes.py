"""What docs/data.md says of boxes is what models are given."""

from pathlib import Path

import pytest

from vlmtune.families import FAMILIES, boxes
from vlmtune.families.boxes import THOUSANDTHS
from vlmtune.families.qwen2_vl import QWEN2_5_VL, input_size_px

PAGE = Path(__file__).parents[3] / "docs" / "data.md"
SHARES = (64 / 640, 240 / 480, 320 / 640, 480 / 480)
SETTINGS = {"patch_size": 14, "merge_size": 2, "size": {"shortest_edge": 3136, "longest_edge": 12845056}}
KNOWN = [QWEN2_5_VL, *(one for one in vars(boxes).values() if isinstance(one, boxes.BoxConvention))]


@pytest.mark.parametrize("convention", KNOWN, ids=lambda one: one.name)
def test_the_page_shows_what_is_written(convention):
    page = PAGE.read_text(encoding="utf-8").replace("\\|", "|")
    seen_px = input_size_px(SETTINGS, 640, 480)
    assert seen_px == (644, 476)
    line = next(line for line in page.splitlines() if f"`{convention.box(SHARES, seen_px)}`" in line)
    assert f"| `{convention.named('the cat')}` |" in line


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("qwen", "qwen_vl"),
        ("qwen2_vl", "qwen2_vl"),
        ("qwen2_5_vl", "qwen2_5_vl"),
        ("qwen3_vl", "thousandths"),
        ("paligemma", "paligemma"),
        ("gemma3", "thousandths"),
        ("llava", "thousandths"),
        ("smolvlm", "thousandths"),
    ],
)
def test_the_convention_of_a_model(model_type, name):
    family = next(family for family in FAMILIES if model_type in family.model_types)
    convention = family.writes_boxes({"model_type": model_type})
    assert convention.name == name
    assert family.box_convention(name) is convention


def test_an_older_plan_names_none():
    assert all(family.box_convention("") is THOUSANDTHS for family in FAMILIES)
