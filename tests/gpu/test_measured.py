"""Every training run measured on a GPU, estimated anew without one; and the runs under a cap.

The bounds over all runs are in tests/gpu/measured/errors.md. All are held with the versions that were measured
(`make gpu-check`): with others a run may really take something else. Four are held in every run of the tests.
"""

import json

import pytest
from gpu.cases import CASES, GRAPHS, Case
from gpu.compare import MEASURED, errors_of
from gpu.ranks_memory import error_of

from vlmtune.runs.versions import library_versions

VERSIONS = json.loads((MEASURED / "peaks.json").read_text(encoding="utf-8"))["versions"]
ALLOCATED_PERCENT = (-0.1, 0.5)
RESERVED_PERCENT = (-1.0, 2.0)
IN_EVERY_RUN = {
    "qwen3-4b-native",
    "llava-7b",
    "smol-2b-fused-packs-away-native",
    "pali-3b-lora",
}


IN_EVERY_RUN_AS_MEASURED = {"smol-2b-native"}
"""With the libraries that were measured: transformers 5.23 allocates it in another order."""


TOO_LOW = {"internvl3-2b-graphs-rank64-native"}
"""Allocated by 0.11 %, for which a reason was not found: 3.7 MB beside logits of 151 tokens."""


def marked(case: Case):
    as_measured = library_versions()["transformers"] == VERSIONS["transformers"]
    often = case.name in IN_EVERY_RUN or (as_measured and case.name in IN_EVERY_RUN_AS_MEASURED)
    marks = [] if often else [pytest.mark.slow]
    marks += [pytest.mark.xfail(strict=True, reason="known to be too low")] if case.name in TOO_LOW else []
    return pytest.param(case, id=case.name, marks=marks)


@pytest.mark.parametrize("case", [marked(case) for case in (*CASES, *GRAPHS)])
def test_estimate_of_a_measured_run(case):
    errors = errors_of(case, fast=False)
    assert RESERVED_PERCENT[0] <= errors.reserved <= RESERVED_PERCENT[1]
    assert ALLOCATED_PERCENT[0] <= errors.allocated <= ALLOCATED_PERCENT[1]


def test_the_table_holds_the_bounds():
    lines = (MEASURED / "errors.md").read_text(encoding="utf-8").splitlines()
    cells = next(line for line in lines if line.startswith("| all |")).strip("| ").split(" | ")
    number, median, at_95, lowest = int(cells[1]), float(cells[2]), float(cells[3]), float(cells[4])
    assert number == len(CASES)
    assert (median == 0, at_95 <= 0.5, lowest >= -1) == (True, True, True)


def test_the_readme_says_how_many_are_within_one_percent():
    table = (
        (MEASURED / "errors.md").read_text(encoding="utf-8").partition("| Run | Allocated |")[2].partition("\n\n")[0]
    )
    reserved = [float(line.split("|")[3]) for line in table.splitlines()[2:]]
    within = sum(abs(error) <= 1 for error in reserved)
    readme = (MEASURED.parents[2] / "README.md").read_text(encoding="utf-8")
    assert f"{within} of {len(CASES)} runs within 1 %" in readme


def test_what_train_estimated_is_what_it_took():
    for run in json.loads((MEASURED / "train.json").read_text(encoding="utf-8"))["runs"]:
        estimated, measured = run["memory_estimated"], run["memory_measured"]
        for peak in ("peak_reserved_bytes", "peak_allocated_bytes"):
            assert estimated[peak] == pytest.approx(measured[peak], rel=0.015), run["name"]


def test_plans_ran_below_the_cap_and_not_above_what_they_need_as_the_allocator_s_model_says():
    runs = json.loads((MEASURED / "cap.json").read_text(encoding="utf-8"))["runs"]
    assert len(runs) == 32 and all(run["ran"] == run["predicted"] for run in runs)
    assert all(run["ran"] for run in runs if run["percent"] < 100)
    ran_above = [(run["case"], run["of"]) for run in runs if run["percent"] > 100 and run["ran"]]
    # Short of memory, PyTorch gives cached blocks back and tries again: that saves this one run.
    assert ran_above == [("qwen3-2b", "estimate")]


def test_the_fullest_of_several_gpus_took_what_was_estimated_before():
    folder = MEASURED / "ranks-memory.json", MEASURED / "ranks-estimated.json"
    measured, estimated = ({run["case"]: run for run in json.loads(file.read_text())["runs"]} for file in folder)
    ended = {name: run for name, run in measured.items() if "out_of_memory" not in run}
    assert len(ended) >= 21 and all(run["gpus_agree"] for run in ended.values())
    for name, run in ended.items():
        assert {kind: abs(error_of(estimated[name], run, kind)) < 1 for kind in ("allocated", "reserved")} == {
            "allocated": True,
            "reserved": True,
        }, name
