"""How long a run is: what a config leaves open follows the number of rows, and what it says is kept."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny.rows import tiny_plan

from vlmtune.config.load import preset_config
from vlmtune.config.presets import names
from vlmtune.config.values import changed
from vlmtune.plan.length import (
    ENOUGH_STEPS,
    begun_values,
    evaluations_from,
    length_told,
    num_steps,
    open_values,
    steps_per_epoch,
    warning_of_few,
)

ACCUMULATION, EPOCHS = "training.gradient_accumulation_steps", "training.num_epochs"


def config_with(*words: str, preset: str = "8gb"):
    return preset_config("org/model", preset, list(words)).config


@pytest.mark.parametrize(
    ("num_rows", "accumulation", "num_epochs", "steps"),
    [
        (1, 4, 100, 100),
        (30, 4, 13, 104),
        (64, 4, 7, 112),
        (500, 8, 2, 126),
        (5_000, 32, 1, 157),
        (10**6, 32, 1, 31_250),
    ],
)
def test_a_preset_takes_about_a_hundred_steps_of_few_rows_and_one_epoch_of_many(
    num_rows, accumulation, num_epochs, steps
):
    assert open_values(config_with(), num_rows) == {ACCUMULATION: accumulation, EPOCHS: num_epochs}
    assert steps_per_epoch(num_rows, 1, accumulation) * num_epochs == steps


@given(num_rows=st.integers(1, 10**6), preset=st.sampled_from(names()), batch_size=st.integers(1, 64))
def test_no_run_that_leaves_its_length_open_is_short(num_rows, preset, batch_size):
    config = config_with(f"training.batch_size={batch_size}", preset=preset)
    values = open_values(config, num_rows)
    steps = values[EPOCHS] * steps_per_epoch(num_rows, batch_size, values[ACCUMULATION])
    assert steps >= ENOUGH_STEPS
    assert batch_size * values[ACCUMULATION] <= max(32, batch_size)
    one_less = (values[EPOCHS] - 1) * steps_per_epoch(num_rows, batch_size, values[ACCUMULATION])
    assert one_less < ENOUGH_STEPS, "no more epochs than that takes"


def test_what_the_config_says_is_kept_and_the_other_follows():
    assert open_values(config_with(f"{EPOCHS}=1", f"{ACCUMULATION}=2"), 30) == {}
    assert open_values(config_with(f"{ACCUMULATION}=32"), 30) == {EPOCHS: 100}
    assert open_values(config_with(f"{EPOCHS}=1"), 500) == {ACCUMULATION: 4}
    assert open_values(config_with(f"{EPOCHS}=20"), 500) == {ACCUMULATION: 32}


def test_without_rows_it_is_one_epoch_of_32_rows_a_step():
    assert open_values(config_with("training.batch_size=4"), None) == {ACCUMULATION: 8, EPOCHS: 1}


@pytest.fixture
def plan(models):
    return tiny_plan(models("llava").folder, training={"gradient_accumulation_steps": 4, "num_epochs": 2.0})


def test_a_run_that_goes_on_is_as_long_as_it_was(plan):
    begun = dataclasses.replace(plan, batch_size=2, gradient_accumulation_steps=3, num_epochs=7.0)
    assert begun_values(config_with(), begun) == {ACCUMULATION: 6, EPOCHS: 7.0}
    assert begun_values(config_with("training.batch_size=3"), begun) == {ACCUMULATION: 2, EPOCHS: 7.0}
    assert begun_values(config_with(f"{EPOCHS}=8", f"{ACCUMULATION}=1"), begun) == {}


def test_the_steps_are_told_with_what_was_chosen(plan):
    assert (num_steps(plan, 9), num_steps(dataclasses.replace(plan, max_steps=5), 9)) == (6, 5)
    assert length_told(plan, 9, {}) == "6 steps of 4 rows: 2 epochs over 9 rows"
    chosen = {ACCUMULATION: 4, EPOCHS: 2.0}
    assert length_told(plan, 9, chosen).endswith(f"over 9 rows (chosen: {ACCUMULATION}=4, {EPOCHS}=2)")
    assert length_told(dataclasses.replace(plan, max_steps=1), 9, {}) == "1 step of 4 rows: 9 rows"


def test_few_steps_are_warned_of(plan):
    assert warning_of_few(plan, 9).startswith("warning: 6 steps teach little")
    assert warning_of_few(dataclasses.replace(plan, num_epochs=30.0), 9) is None
    assert "training.max_steps" in warning_of_few(dataclasses.replace(plan, max_steps=1), 9)


@given(total=st.integers(1, 60), every=st.none() | st.integers(1, 70), step=st.integers(1, 61))
def test_evaluations_left_are_those_at_multiples_and_at_the_last_step(total, every, step):
    at = {total, *range(every, total + 1, every)} if every else {total}
    assert evaluations_from(step, total, every) == len([one for one in at if one >= step])


def test_epochs_that_a_number_of_steps_replaces_are_not_told_of():
    config = config_with("training.max_steps=60")
    chosen = open_values(config, 500)
    assert EPOCHS in chosen
    told = length_told(changed(config, chosen).training, 500, chosen)
    assert told == f"60 steps of 8 rows: 500 rows (chosen: {ACCUMULATION}=8)"
