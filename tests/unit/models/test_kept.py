"""Bases that were quantised once and kept: the same model at the next start, and one line where that cannot be."""

import dataclasses
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from kills import exit_code_of
from safetensors import SafetensorError
from tiny import TINY, save_tiny
from tiny.rows import tiny_plan

from vlmtune.estimate.simulate.weights import load_checkpoint, load_packed, loading_of
from vlmtune.files import cache_folder
from vlmtune.hub.shards import stored_tensors
from vlmtune.models import build, kept
from vlmtune.models.build import base_of, build_model, check_checkpoint, load_base
from vlmtune.models.streaming import read_parameter

KEEP = {"model": {"cache_quantized": True}}
WEIGHTS = "model-00001-of-00001.safetensors"
"""Of a small base."""
Usage = namedtuple("Usage", "total used free")


def plan_of(folder: Path, **changes):
    plan = dataclasses.replace(tiny_plan(folder), cache_quantized=True)
    return dataclasses.replace(plan, **changes)


def load(plan) -> tuple[torch.nn.Module, list[str]]:
    """The base, and what was told."""
    told = []
    return load_base(plan, tell=told.append), told


def bytes_of(model) -> dict[str, torch.Tensor]:
    """Every tensor of a base, and how its packed weights were written."""
    return dict(model.state_dict())


def assert_same(model, other) -> None:
    found, expected = bytes_of(model), bytes_of(other)
    assert found.keys() == expected.keys() and len(found) >= 100
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert {name: tensor.dtype for name, tensor in found.items()} == {n: t.dtype for n, t in expected.items()}


def is_kept(plan) -> bool:
    return kept.is_kept(plan, None)


def bases() -> list[Path]:
    return sorted((cache_folder() / "bases").iterdir())


@pytest.fixture
def llava(models, tmp_path) -> Path:
    """A copy of the tiny LLaVA, which a test may change."""
    return shutil.copytree(models("llava").folder, tmp_path / "llava")


@pytest.fixture
def quantised(monkeypatch) -> list[str]:
    """The models that were loaded in 16 bits and quantised."""
    names, real = [], build._from_files

    def from_files(plan, *args):
        if not plan.prequantised:
            names.append(plan.model)
        return real(plan, *args)

    monkeypatch.setattr(build, "_from_files", from_files)
    return names


@pytest.mark.parametrize("name", sorted(TINY))
def test_the_second_load_reads_it_bit_for_bit(name, models, quantised):
    plan = plan_of(models(name).folder)
    expected = load_base(dataclasses.replace(plan, cache_quantized=False))
    first, told_first = load(plan)
    second, told = load(plan)
    assert len(quantised) == 2 and len(told_first) == len(told) == 1
    assert told_first[0].startswith("keeping the base in 4 bits for the next start: ")
    assert told == [f"the base in 4 bits comes from {bases()[0]}"]
    assert_same(first, expected)
    assert_same(second, expected)
    once = {name for name, _ in second.named_parameters()}
    again = {name for name, _ in second.named_parameters(remove_duplicate=False)} - once
    assert not again & stored_tensors(bases()[0]).keys(), "a head that is the embedding is written once"
    check_checkpoint(plan)


def test_what_is_trained_on_it_begins_with_the_same_numbers(models):
    tiny = models("llava")
    plan = plan_of(tiny.folder)
    build_model(plan)
    kept_one, fresh = build_model(plan), build_model(dataclasses.replace(plan, cache_quantized=False))
    assert base_of(kept_one).state_dict().keys() == base_of(fresh).state_dict().keys()
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, kept_one.state_dict()[name]), name


@pytest.mark.parametrize(
    "changes", [{"quant_type": "fp4"}, {"double_quant": False}, {"unquantized": ()}, {"base_dtype": "bf16"}]
)
def test_each_way_of_packing_has_its_own(changes, llava, quantised):
    load(plan_of(llava))
    base, told = load(plan_of(llava, **changes))
    assert len(quantised) == 2 and len(bases()) == 2 and told[0].startswith("keeping")
    again, _ = load(plan_of(llava, **changes))
    assert len(quantised) == 2
    assert_same(again, base)


def anew(plan, expected) -> str:
    """Assert that the base is made anew and is right, and return why it was."""
    base, told = load(plan)
    assert len(told) == 2 and told[1].startswith("keeping")
    assert_same(base, expected)
    start = f"the base in 4 bits that is kept in {bases()[0]} is not used, and made anew: "
    assert told[0].startswith(start)
    once_more, told_then = load(plan)
    assert told_then == [f"the base in 4 bits comes from {bases()[0]}"] and len(bases()) == 1
    assert_same(once_more, expected)
    return told[0].removeprefix(start)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("file", [WEIGHTS, "config.json", kept.MADE, "model.safetensors.index.json"])
def test_a_damaged_one_is_made_anew(file, damage, llava):
    plan = plan_of(llava)
    expected, _ = load(plan)
    damage(bases()[0] / file)
    assert anew(plan, expected) == "it is damaged"


def test_damage_between_the_pieces_that_are_looked_at_is_found_by_the_load(llava, monkeypatch):
    plan = plan_of(llava)
    expected, _ = load(plan)
    made = json.loads((bases()[0] / kept.MADE).read_text())
    cut(bases()[0] / WEIGHTS)
    made["files"][WEIGHTS] = kept._digest(bases()[0] / WEIGHTS)
    (bases()[0] / kept.MADE).write_text(json.dumps(made))
    assert "is damaged: it holds" in anew(plan, expected)


def test_other_weights_of_the_same_size_and_time_are_not_taken_for_those(llava, tmp_path):
    plan = plan_of(llava)
    load(plan)
    file = llava / "model.safetensors"
    times = file.stat()
    other = save_tiny("llava", tmp_path / "other", seed=1)
    shutil.copy(other / "model.safetensors", file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file.stat().st_size == times.st_size
    expected = load_base(dataclasses.replace(plan, cache_quantized=False))
    assert anew(plan, expected) == "it was made of other weights"


def test_weights_that_were_written_again_are_not_taken_for_those(llava):
    plan = plan_of(llava)
    expected, _ = load(plan)
    os.utime(llava / "model.safetensors", ns=(1, 1))
    assert anew(plan, expected) == "it was made of other weights"


@pytest.mark.parametrize("library", kept.DECIDING)
def test_another_version_makes_it_anew(library, llava, monkeypatch):
    plan, real = plan_of(llava), kept.library_versions()
    with monkeypatch.context() as older:
        older.setattr(kept, "library_versions", lambda: real | {library: "0.1"})
        expected, _ = load(plan)
    assert anew(plan, expected) == f"it was made by {library} 0.1, and {real[library]} is installed"


def test_another_card_makes_it_anew(llava, monkeypatch):
    plan = plan_of(llava)
    with monkeypatch.context() as other:
        other.setattr(kept, "_card", lambda plan: "RTX 3070")
        expected, _ = load(plan)
    assert anew(plan, expected) == "it was made on RTX 3070"


def test_large_ones_are_written_and_read_in_parts(llava, monkeypatch, quantised):
    monkeypatch.setattr(kept, "WRITTEN_AT_ONCE_BYTES", 100_000)
    plan = plan_of(llava)
    expected, _ = load(plan)
    assert len(list(bases()[0].glob("model-*.safetensors"))) >= 3
    base, _ = load(plan)
    assert len(quantised) == 1
    assert_same(base, expected)


def test_streamed_layers_are_kept_with_their_own_numbers(tmp_path, monkeypatch, quantised):
    """Their weights have two places on the card between them all, and are elsewhere when the base is written."""
    monkeypatch.setattr(kept, "WRITTEN_AT_ONCE_BYTES", 100_000)
    folder = save_tiny("llava", tmp_path / "deep", layers=5)
    plan = plan_of(folder)
    expected = load_base(dataclasses.replace(plan, cache_quantized=False))
    streamed = dataclasses.replace(plan, streamed_layers=4)
    load(streamed)
    assert len(list(bases()[0].glob("model-*.safetensors"))) >= 5
    base, told = load(plan)
    assert told == [f"the base in 4 bits comes from {bases()[0]}"] and len(quantised) == 2
    assert_same(base, expected)
    again, _ = load(streamed)
    for name, weight in again.named_parameters():
        assert torch.equal(read_parameter(again, weight), expected.get_parameter(name)), name
    assert len(quantised) == 2


def test_a_hub_model_is_known_by_its_commit(llava, monkeypatch, quantised):
    plan = plan_of(llava, model="org/llava", revision="1234")
    places = {"org/llava": llava}
    monkeypatch.setattr(build, "checkpoint_folder", lambda model, *_, **__: places.get(model, Path(model)))
    expected, _ = load(plan)
    os.utime(llava / "model.safetensors", ns=(1, 1))  # as a download anew leaves it
    base, told = load(plan)
    assert len(quantised) == 1 and told[0].startswith("the base in 4 bits comes from")
    assert_same(base, expected)
    assert not is_kept(dataclasses.replace(plan, revision="5678"))


def not_kept(plan, quantised) -> str:
    """Assert that the base loads and is not kept, and return why."""
    base, told = load(plan)
    assert told[-1].startswith("the base in 4 bits is not kept: ") and not is_kept(plan)
    assert_same(base, load_base(dataclasses.replace(plan, cache_quantized=False)))
    return told[-1]


def test_no_room_is_said_before_anything_is_written(llava, monkeypatch, quantised):
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(1, 1, 1000))
    said = not_kept(plan_of(llava), quantised)
    assert "are needed on the disk of" in said and said.endswith(", 1 kB are free") and bases() == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_disk_that_fills_up_leaves_nothing(error, llava, monkeypatch, quantised):
    def full(*args):
        raise error

    monkeypatch.setattr(kept, "save_file", full)
    assert "No space left on device" in not_kept(plan_of(llava), quantised)
    assert bases() == []


def test_a_cache_that_cannot_be_written_is_told(llava, monkeypatch, quantised):
    real = Path.mkdir

    def mkdir(self, *args, **kwargs):
        if self.name == "bases":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert "Permission denied" in not_kept(plan_of(llava), quantised)


def test_a_cache_that_can_only_be_read_is_read(llava, monkeypatch, quantised):
    plan = plan_of(llava)
    load(plan)

    def read_only(*args, **kwargs):
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(kept.os, "utime", read_only)
    assert load(plan)[1] == [f"the base in 4 bits comes from {bases()[0]}"] and len(quantised) == 1


def test_a_kill_in_the_middle_leaves_nothing_in_the_way(llava, quantised):
    def quantise_and_die() -> None:
        kept.Made = lambda *args: os._exit(9)
        load(plan_of(llava))

    assert exit_code_of(quantise_and_die) == 9
    (partial,) = bases()
    assert (partial / "made" / WEIGHTS).exists()
    plan = plan_of(llava)
    load(plan)
    load(plan)
    assert len(quantised) == 1 and partial in bases(), "another process might be writing it"
    for path in (partial, *partial.rglob("*")):
        os.utime(path, (1, 1))
    load(plan_of(llava, double_quant=False))
    assert partial not in bases() and len(bases()) == 2


def test_of_two_runs_at_once_both_have_it(llava, monkeypatch, quantised):
    """The other one is quicker by a moment: it has renamed its own when this one is whole."""
    plan, real = plan_of(llava), kept.write_json
    expected, quicker = [], []

    def write_json(path, value):
        real(path, value)
        if not expected and path.name == kept.MADE:
            expected.append(None)
            expected[0], _ = load(plan)
            quicker.append(kept._place(plan, None).stat().st_ino)

    monkeypatch.setattr(kept, "write_json", write_json)
    base, told = load(plan)
    assert len(bases()) == 1 and not [line for line in told if "not kept" in line]
    assert bases()[0].stat().st_ino == quicker[0], "what another run may be reading stays"
    assert_same(base, expected[0])
    again, _ = load(plan)
    assert len(quantised) == 2
    assert_same(again, base)


def test_a_base_without_its_tower_is_kept_as_such(llava, quantised):
    """A run whose images are encoded before never has the tower."""
    plan = plan_of(llava, cache_features=True)
    expected = build_model(dataclasses.replace(plan, cache_quantized=False))
    told: list[str] = []
    first, second = (build_model(plan, tell=told.append) for _ in range(2))
    assert [line.partition(":")[0] for line in told[:1]] == ["keeping the base in 4 bits for the next start"]
    assert told[1:] == [f"the base in 4 bits comes from {bases()[0]}"] and len(quantised) == 2
    assert not any("vision_tower" in name for name in stored_tensors(bases()[0]))
    assert build.base_is_kept(plan) and not is_kept(plan)
    for made in (first, second):
        found = made.state_dict()
        assert found.keys() == expected.state_dict().keys()
        assert all(torch.equal(value, found[name]) for name, value in expected.state_dict().items())


def test_those_used_last_are_kept(llava, quantised):
    plans = [plan_of(llava, unquantized=(f"no.{number}",)) for number in range(kept.KEPT + 1)]
    for number, plan in enumerate(plans[:-1]):
        load(plan)
        for path in (kept._place(plan, None), *kept._place(plan, None).iterdir()):
            os.utime(path, (number, number))
    load(plans[0])
    load(plans[-1])
    assert is_kept(plans[0]) and is_kept(plans[-1]) and not is_kept(plans[1])
    assert len(bases()) == kept.KEPT


def test_the_estimate_knows_whether_it_is_kept(llava):
    plan = plan_of(llava)
    assert loading_of(plan) is load_checkpoint
    load(plan)
    assert loading_of(plan) is load_packed
    assert loading_of(dataclasses.replace(plan, cache_quantized=False)) is load_checkpoint
