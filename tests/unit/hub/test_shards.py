"""Weight files that are missing, cut off or damaged are found from their headers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vlmtune.errors import VlmtuneError
from vlmtune.hub.shards import INDEX, SINGLE, stored_tensors

TENSORS = {"a.weight": torch.zeros(4, 3), "b.weight": torch.ones(2, dtype=torch.bfloat16)}


@pytest.fixture
def single(tmp_path) -> Path:
    save_file(TENSORS, tmp_path / SINGLE, {"format": "pt"})
    return tmp_path


@pytest.fixture
def sharded(tmp_path) -> Path:
    places = {name: f"model-{number}.safetensors" for number, name in enumerate(TENSORS)}
    for name, file in places.items():
        save_file({name: TENSORS[name]}, tmp_path / file)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    return tmp_path


def error(folder: Path) -> str:
    with pytest.raises(VlmtuneError) as raised:
        stored_tensors(folder)
    return str(raised.value)


@pytest.mark.parametrize("files", ["single", "sharded"])
def test_names_and_shapes(files, request):
    found = stored_tensors(request.getfixturevalue(files))
    assert {name: tensor.shape for name, tensor in found.items()} == {"a.weight": (4, 3), "b.weight": (2,)}


def test_half_the_shards(sharded):
    (sharded / "model-1.safetensors").unlink()
    assert "lacks 1 of 2 weight files that model.safetensors.index.json names: model-1.safetensors" in error(sharded)


def test_a_shard_of_another_download(sharded):
    shutil.copy(sharded / "model-0.safetensors", sharded / "model-1.safetensors")
    assert "model-0.safetensors lacks a.weight" in error(sharded) or "lacks b.weight" in error(sharded)


@pytest.mark.parametrize("num_bytes", [0, 5, 40, -1])
def test_a_file_that_is_cut_off(single, num_bytes):
    whole = (single / SINGLE).read_bytes()
    (single / SINGLE).write_bytes(whole[:num_bytes])
    assert "model.safetensors is damaged: it" in error(single)
    assert "download the file again" in error(single)


def test_a_file_with_more_than_its_header_says(single):
    with (single / SINGLE).open("ab") as file:
        file.write(b"more")
    assert "bytes, its header says" in error(single)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 48]}, "a.weight has another size than its shape [4, 4]"),
        ({"dtype": "F32", "shape": [-4, -3], "data_offsets": [0, 48]}, "does not say where a.weight is"),
        ({"dtype": "F32", "shape": [4, 3]}, "does not say where a.weight is"),
        ({"dtype": True, "shape": [4, 3], "data_offsets": [0, 48]}, "does not say where a.weight is"),
        ({"dtype": "F32", "shape": "43", "data_offsets": [0, 48]}, "does not say where a.weight is"),
        (3, "does not say where a.weight is"),
    ],
)
def test_a_header_that_makes_no_sense(single, entry, said):
    text = json.dumps({"a.weight": entry}).encode()
    (single / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + bytes(48))
    assert said in error(single)


def _at(start: int, stop: int) -> dict:
    return {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "places",
    [[(0, 48), (0, 48)], [(0, 30), (20, 48)], [(0, 20), (28, 48)], [(8, 48)]],
    ids="same over hole late".split(),
)
def test_tensors_that_share_bytes_or_leave_some_out(single, places):
    """Libraries differ in what they make of such files."""
    text = json.dumps({f"{number}": _at(*place) for number, place in enumerate(places)}).encode()
    (single / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + bytes(48))
    assert "does not begin where another tensor ends" in error(single)


def test_a_header_of_a_hundred_megabytes_is_not_read(single):
    with (single / SINGLE).open("r+b") as file:
        file.write((90_000_000).to_bytes(8, "little"))
        file.truncate(100_000_000)
    assert "it is cut off, or no safetensors file" in error(single)


@pytest.mark.parametrize(
    "index", ["", "{}", "[]", "[" * 100_000, "9" * 5_000, '{"weight_map": []}', '{"weight_map": {}}']
)
def test_a_damaged_index(sharded, index):
    (sharded / INDEX).write_text(index)
    assert f"{INDEX} is damaged" in error(sharded)


@pytest.mark.parametrize("name", ["../../etc/passwd", "..", "a" * 10_000, "\0", "\ud800", ""])
def test_an_index_that_leads_out_of_the_folder(sharded, name):
    (sharded / INDEX).write_text(json.dumps({"weight_map": {"a.weight": name}}))
    assert "names no files of this folder" in error(sharded)


def test_no_weights_and_pickles(tmp_path):
    assert "has no weights" in error(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    assert "its weights in pytorch_model.bin, a pickle" in error(tmp_path)


def test_a_folder_of_gguf_says_so(tmp_path):
    (tmp_path / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    with pytest.raises(VlmtuneError, match="has no weights") as error:
        stored_tensors(tmp_path)
    assert error.value.hint.startswith("model-Q4_K_M.gguf is already quantised: name the 16-bit model")
