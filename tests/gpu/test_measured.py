"""Every training run measured on a GPU, estimated anew without one.

Reserved memory, over all 42 runs (tests/gpu/measured/errors.md): median of the error's size 0.1 %, 95th percentile
below 5 %, never more than 3 % too low. With expandable segments no run is off by more than 1.5 %. With native segments
the estimate is up to 4.2 % too high (Qwen2.5-VL 3B, Qwen3-VL 4B) and 2 % too low: which of equally large blocks is
taken depends on where the driver put them. The rules were found on the traces of qwen3-2b-native and llava-7b; no other
run was looked into. Weights were made on the card, so loading from a checkpoint is not measured here.
"""

import pytest
from gpu.cases import CASES, Case
from gpu.compare import MEASURED, errors_of

ALLOCATED_PERCENT = (-0.2, 0.6)
EXPANDABLE_PERCENT = (-0.5, 1.5)
NATIVE_PERCENT = (-3.0, 5.0)
IN_EVERY_RUN = {
    "qwen3-2b",
    "qwen3-4b-native",
    "qwen25-3b-large-image",
    "llava-7b",
    "smol-2b-native",
    "gemma-4b",
    "pali-3b-lora",
}


def marked(case: Case):
    return pytest.param(case, id=case.name, marks=() if case.name in IN_EVERY_RUN else pytest.mark.slow)


@pytest.mark.parametrize("case", [marked(case) for case in CASES])
def test_estimate_of_a_measured_run(case):
    errors = errors_of(case)
    low, high = EXPANDABLE_PERCENT if case.expandable else NATIVE_PERCENT
    assert low <= errors.reserved <= high
    assert ALLOCATED_PERCENT[0] <= errors.allocated <= ALLOCATED_PERCENT[1]


def test_the_table_holds_the_bounds():
    lines = (MEASURED / "errors.md").read_text(encoding="utf-8").splitlines()
    cells = next(line for line in lines if line.startswith("| all |")).strip("| ").split(" | ")
    number, median, at_95, lowest = int(cells[1]), float(cells[2]), float(cells[3]), float(cells[4])
    assert number == len(CASES)
    assert (median <= 2, at_95 <= 5, lowest >= -3) == (True, True, True)
