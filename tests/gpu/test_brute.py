"""What the brute force makes of plans and of what was timed, on the CPU."""

import json

import pytest
from gpu import brute
from gpu.cases import config_of

CHOSEN, OTHER = {"training.batch_size": 4}, {"training.packing": True, "training.pack_tokens": 2048}


def plan(pair: int, values: dict, step_s: float, chosen: bool = False) -> dict:
    return {"pair": brute.PAIRS[pair].name, "chosen": chosen, "values": values, "step_s": step_s}


PLANS = [plan(pair, values, 1 + pair, values is CHOSEN) for pair in range(6) for values in (CHOSEN, OTHER)]


def test_all_plans_of_a_pair_are_timed_on_one_card_what_was_chosen_first():
    shares = brute.by_card(PLANS, 4)
    assert len(shares) == 4 and sorted(sum(shares, [])) == sorted(map(brute.name_of, PLANS))
    for share in shares:
        for chosen, other in zip(share[::2], share[1::2], strict=True):
            assert chosen.split("--")[0] == other.split("--")[0] and "batch_size-4" in chosen
    assert brute.by_card(PLANS[:2], 3) == [[brute.name_of(one) for one in PLANS[:2]], [], []]


def test_what_was_chosen_is_held_against_the_quickest_that_was_timed():
    def run(one: dict, computing_s: float, kernel_ms: float) -> dict:
        return {"case": brute.name_of(one), "computing_s": computing_s, "step_s": 9.0, "kernel_ms": kernel_ms}

    out_of_memory = {"case": brute.name_of(PLANS[3]), "out_of_memory": True}
    runs = [run(PLANS[0], 1.2, 900), run(PLANS[1], 1.0, 1000), run(PLANS[2], 1.0, 1), out_of_memory]
    (found,) = brute.verdicts(PLANS, runs)
    assert (found["pair"], found["timed"]) == (brute.PAIRS[0].name, 2)
    assert found["over"] == pytest.approx(0.2) and found["over_by_kernels"] == 0
    assert found["quickest"] == brute.name_of(PLANS[1])


def test_what_is_to_be_timed_makes_configs(tmp_path):
    plans = json.loads(brute.PLANS.read_text(encoding="utf-8"))
    names = [brute.name_of(one) for one in plans]
    assert len(set(names)) == len(names)
    for one in plans:
        config = config_of(brute.case_of(one, "name"), tmp_path)
        assert config.training.batch_size * config.training.gradient_accumulation_steps == brute.PER_STEP
        assert config.training.max_steps == brute.STEPS
    chosen = [one["pair"] for one in plans if one["chosen"]]
    assert sorted(chosen) == sorted(pair.name for pair in brute.PAIRS)
