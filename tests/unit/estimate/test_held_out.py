"""Held-out rows are estimated as training evaluates them: each alone, those that need most."""

from dataclasses import replace

import pytest
from tiny.rows import colour_rows, picture, sample

from vlmtune.data.run_data import MeasuredRows
from vlmtune.engine.answers.held_out import drawn_rows
from vlmtune.errors import VlmtuneError
from vlmtune.estimate.given_rows import GivenRows
from vlmtune.estimate.held_out import HeldOut
from vlmtune.estimate.learned import learned_of
from vlmtune.estimate.run import _Rows, estimate_plan
from vlmtune.estimate.simulate.simulation import EVALUATION
from vlmtune.hardware.cards import Target, find_card

TARGET = Target(find_card("8gb"), 8 * 2**30, True)


@pytest.fixture
def tiny(models):
    return models("qwen3_vl")


@pytest.fixture
def plan(tiny):
    return replace(tiny.plan, device="cuda", max_length=5000)


def given(trained, held_out) -> GivenRows:
    return GivenRows(MeasuredRows(trained), MeasuredRows(held_out))


def peaks(report) -> dict[str, int]:
    return {phase.name: phase.peak_allocated_bytes for phase in report.phases}


def said(question: str, answer: str, number: int):
    return sample(question, answer, where=f"val.jsonl:{number}")


def test_a_long_row_that_is_only_evaluated_is_the_peak(tiny, plan, tmp_path):
    trained = colour_rows(tmp_path, 3)
    short, long = (given(trained, [said("why? " * times, "so", 7)]) for times in (1, 900))
    usual, most = (estimate_plan(plan, tiny.source, rows, TARGET, fast=True) for rows in (short, long))
    assert usual.worst_row.startswith("rows.jsonl") and peaks(usual)[EVALUATION] < usual.peak_allocated_bytes
    assert most.peak_at.phase == EVALUATION and most.peak_allocated_bytes == peaks(most)[EVALUATION]
    assert most.worst_row == "val.jsonl:7" and most.tokens["total"] > 900
    assert {name: peak for name, peak in peaks(most).items() if name.startswith("step")} == {
        name: peak for name, peak in peaks(usual).items() if name.startswith("step")
    }


def test_a_row_with_many_labels_is_evaluated_beside_the_longest(tiny, plan, tmp_path):
    rows = [said("why? " * 90, "so", 1), said("why?", "so " * 60, 2), said("a", "b", 3)]
    few = GivenRows(MeasuredRows(colour_rows(tmp_path, 2)), MeasuredRows(rows))
    held_out = HeldOut(plan, tiny.source, few)

    def evaluated(trained):
        lengths = GivenRows(MeasuredRows(trained)).lengths(plan, tiny.source)
        return [row.where for row in held_out.needing_most(learned_of(lengths, plan, tiny.source.facts("tiny")))]

    assert evaluated(colour_rows(tmp_path, 2)) == ["val.jsonl:1", "val.jsonl:2"]
    assert evaluated([said("why?", "so " * 70, 9)]) == ["val.jsonl:1"], "a step with more labels needs more"


def test_rows_that_training_refuses_are_refused(tiny, plan, tmp_path):
    rows = given(colour_rows(tmp_path, 2), [said("why? " * 90, "so", 4)])
    with pytest.raises(VlmtuneError, match="1 of 1 rows have more than data.max_length: 64") as caught:
        estimate_plan(replace(plan, max_length=64), tiny.source, rows, TARGET)
    assert "val.jsonl:4" in str(caught.value.problems[0])


def test_pictures_held_out_are_encoded_too(tiny, plan, tmp_path):
    trained, large = colour_rows(tmp_path, 2), picture(tmp_path, "large", (700, 600), "red")
    rows = given(trained, [sample("what?", "this", large, where="val.jsonl:1")])
    assert _Rows(plan, tiny.source, rows)._most_seen([0, 1]).where == "val.jsonl:1"
    shown = given(trained, [sample("what?", "this", trained[0].images[0], where="val.jsonl:1")])
    assert _Rows(plan, tiny.source, shown)._most_seen([0, 1]).where == "rows.jsonl:1"
    unseen = given([said("a", "b", 1)], rows.held_out.samples)
    report = estimate_plan(replace(plan, cache_features=True), tiny.source, unseen, TARGET, fast=True)
    assert report.encoding_reserved_bytes > 0, "no row that is trained on has a picture"


def test_every_gpu_may_have_the_longest_of_those_asked(tiny, plan, tmp_path):
    asking = replace(plan, generate_rows=8)
    second = drawn_rows(asking, 8)[1]
    times = [9 if number == second else 1 for number in range(8)]
    rows = given(colour_rows(tmp_path, 2), [said("why? " * n, "so " * n, number) for number, n in enumerate(times)])
    one, two = (HeldOut(replace(asking, num_gpus=gpus), tiny.source, rows).asked(lambda row: row) for gpus in (1, 2))
    assert (one.num_rows, two.num_rows) == (8, 4)
    assert one.longest.where == two.longest.where == f"val.jsonl:{second}"
    assert one.max_new_tokens == two.max_new_tokens > 10
