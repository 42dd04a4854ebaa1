"""How far losses of equal runs are apart."""

import json

import pytest
from gpu import equal, parted

FIRST = {"run": "peft", "seed": 1, "losses": [3.0, 2.0, 1.0]}


def test_losses_are_apart_by_the_mean_and_by_the_worst_step():
    assert parted.parted({"losses": [3.0, 2.5, 0.9]}, FIRST) == pytest.approx((0.2, 0.5))


def test_every_kind_of_run_has_a_name_in_the_tables():
    demo = json.loads((parted.MEASURED / "demo-equal.json").read_text(encoding="utf-8"))["runs"]
    assert {*equal.RUNS, *(run["run"] for run in demo)} == {*parted.NAMES}


def test_every_seed_is_held_against_its_own_first_run(monkeypatch, tmp_path):
    other = {**FIRST, "seed": 2, "losses": [5.0, 4.0, 3.0]}
    lean = [{**run, "run": "lean", "losses": [run["losses"][0] + 0.25, *run["losses"][1:]]} for run in (other, FIRST)]
    monkeypatch.setattr(parted, "MEASURED", tmp_path)
    (tmp_path / "some.json").write_text(json.dumps({"runs": [FIRST, other, *lean]}))
    *_, line = parted.losses_table("some.json").splitlines()
    assert line == "| lean adapters | 2 | 3.250, 5.250 | 2.0833, 4.0833 | 8.3e-02 | 2.5e-01 |"
