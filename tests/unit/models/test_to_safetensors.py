"""Pickles become safetensors without running them, with the command that the refusal prints."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_tiny
from tiny.rows import tiny_plan

from vlmtune.errors import VlmtuneError
from vlmtune.models.build import load_base
from vlmtune.models.to_safetensors import convert


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A Qwen-VL checkout as published: pickles in shards, with an index."""
    folder = save_tiny("qwen", tmp_path_factory.mktemp("it's") / "model")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder.parent / "kept.safetensors")
    weight_map = {}
    for number in (1, 2):
        name = f"pytorch_model-{number:05}-of-00002.bin"
        some = {key: tensors[key] for key in sorted(tensors)[number - 1 :: 2]}
        torch.save(some, folder / name)
        weight_map |= dict.fromkeys(some, name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_the_printed_command_makes_the_model_loadable(published):
    plan = tiny_plan(published)
    with pytest.raises(VlmtuneError) as refused:
        load_base(plan)
    assert "its weights in pytorch_model-00001-of-00002.bin, a pickle" in refused.value.message
    command = refused.value.hint.partition("which runs nothing of it: ")[2]
    assert "from_pretrained" not in command and "trust_remote_code" not in command
    command = command.replace("python -m", f"{sys.executable} -m")
    subprocess.run(command, shell=True, check=True, timeout=120, cwd=Path(__file__).parents[3])
    expected = load_file(published.parent / "kept.safetensors")
    index = json.loads((published / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == expected.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    found = {}
    for number in (1, 2):
        found |= load_file(published / f"model-{number:05}-of-00002.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not list(published.glob("*.partial"))
    load_base(plan)


def test_one_file_with_views_of_one_memory(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    torch.save({"a": whole, "b": whole, "c": whole.T, "d": whole[1]}, tmp_path / "pytorch_model.bin")
    assert convert(tmp_path) == [tmp_path / "model.safetensors"]
    found = load_file(tmp_path / "model.safetensors")
    assert torch.equal(found["b"], whole) and torch.equal(found["c"], whole.T) and torch.equal(found["d"], whole[1])
    assert not (tmp_path / "model.safetensors.index.json").exists()


class Runs:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_what_a_pickle_holds_is_not_run(tmp_path, write):
    write({"a": Runs(str(tmp_path / "ran"))}, tmp_path / "pytorch_model.bin")
    with pytest.raises(VlmtuneError, match="pytorch_model.bin is not opened"):
        convert(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_model.bin"]


def test_other_things_than_tensors(tmp_path):
    torch.save({"step": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(VlmtuneError, match="holds other things than tensors"):
        convert(tmp_path)


def test_no_pickles_and_a_missing_shard(tmp_path):
    with pytest.raises(VlmtuneError, match="no pickled weights there"):
        convert(tmp_path)
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}')
    with pytest.raises(VlmtuneError, match="pytorch_model-00001-of-00001.bin: no pickled weights there"):
        convert(tmp_path)


def test_no_room(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(9)}, tmp_path / "pytorch_model.bin")
    monkeypatch.setattr("vlmtune.models.to_safetensors.shutil.disk_usage", lambda path: type("U", (), {"free": 3}))
    with pytest.raises(VlmtuneError, match="more room on its disk"):
        convert(tmp_path)
