"""Architectures without a family of their own keep the contract on a tiny model of their default config."""

import json
import re
from pathlib import Path

import pytest

from vlmtune.contract import COUNTED, check
from vlmtune.errors import VlmtuneError
from vlmtune.families import find_family
from vlmtune.hub.source import ModelSource

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = json.loads((DOCS / "architectures.json").read_text(encoding="utf-8"))["types"]
FEWEST = 40


def holding() -> list[str]:
    """The model types of which every counted point holds."""
    return [
        kind
        for kind, points in RESULTS.items()
        if set(COUNTED) <= {point["name"] for point in points if point["holds"]}
    ]


@pytest.mark.parametrize("kind", ["internvl", "qwen3_5", "idefics2", "minicpmv4_6"])
def test_what_the_table_says_is_so(kind, tmp_path):
    findings = check(ModelSource(kind, {"model_type": kind}, {}), tmp_path)
    tried = [[finding.name, finding.holds, finding.reason] for finding in findings]
    assert tried == [[point["name"], point["holds"], point["reason"]] for point in RESULTS[kind]]
    assert kind in holding()


def test_enough_architectures_hold():
    assert len(holding()) >= FEWEST


def test_every_failure_has_a_reason():
    failed = [(kind, point) for kind, points in RESULTS.items() for point in points if not point["holds"]]
    assert failed
    assert [kind for kind, point in failed if not point["reason"].strip()] == []


def test_the_table_is_that_of_the_results():
    rows = re.findall(r"^\| ([\w.-]+) \| \w+ \| (.*)$", (DOCS / "architectures.md").read_text("utf-8"), re.MULTILINE)
    said = {
        kind: cells.split(" | ")[: len(COUNTED)] == ["yes"] * len(COUNTED)
        for kind, cells in rows
        if kind != "model_type"
    }
    assert said == {kind: kind in holding() for kind in RESULTS}


def test_the_parts_of_a_generic_family_are_full_paths():
    family = find_family({"model_type": "internvl"}, "tiny")
    assert (family.name, family.text, family.head) == ("generic", "model.language_model", "lm_head")
    assert (family.vision, family.projector) == ("model.vision_tower", ("model.multi_modal_projector",))
    assert set(family.text_linears) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(("kind", "words"), [("bert", "belongs to no known family"), ("florence2", "encoder-decoder")])
def test_what_cannot_be_tuned_is_named(kind, words):
    with pytest.raises(VlmtuneError, match=words):
        find_family({"model_type": kind}, "org/model")


def test_a_damaged_config_is_named():
    damaged = {"model_type": "internvl", "text_config": {"model_type": "qwen2", "hidden_size": "wide"}}
    with pytest.raises(VlmtuneError, match="org/model: its config.json describes no model"):
        find_family(damaged, "org/model")
