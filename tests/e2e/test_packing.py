"""A packed run is the run without packs, within rounding; what cannot be packed is said before a model loads."""

import json

import pytest

PACKED = ("training.packing=true", "training.pack_tokens=160", "training.gradient_accumulation_steps=3")


def log_of(folder, key):
    return [json.loads(line)[key] for line in folder.log.read_text().splitlines()]


def test_a_packed_run_learns_what_it_learns_without_packs(project):
    plain = project.train("plain", "training.gradient_accumulation_steps=3", "training.packing=false")
    packed = project.train("packed", *PACKED)
    assert (plain.code, packed.code) == (0, 0), packed.stderr
    one, other = project.run("plain"), project.run("packed")
    assert len(log_of(one, "loss")) == 6
    assert log_of(other, "loss") == pytest.approx(log_of(one, "loss"), rel=1e-4)
