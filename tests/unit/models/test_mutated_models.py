"""Models damaged at random: each loads or is refused with a message, and none ends in a traceback."""

import json
import random
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import save_tiny
from tiny.rows import tiny_plan
from transformers import AutoModelForImageTextToText

from vlmtune.errors import VlmtuneError
from vlmtune.hub.shards import INDEX
from vlmtune.models.build import load_base

VALUES = [None, -1, 0, 1, 10**9, 1.5, "x", "", [], {}, True, 3.4e38, [1], float("nan"), 10**30, {"a": 1}]
FILES = ["config.json", INDEX, "model-00002-of-00004.safetensors"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny model in four files, and a place for its damaged copy."""
    root = tmp_path_factory.mktemp("mutated")
    whole = save_tiny("llava", root / "whole")
    model = AutoModelForImageTextToText.from_pretrained(whole)
    (whole / "model.safetensors").unlink()
    model.save_pretrained(whole, max_shard_size="300KB")
    assert (whole / FILES[2]).is_file()
    return whole, root / "damaged"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(file=st.sampled_from(FILES), way=st.sampled_from(["cut", "flip", "value", "value"]), seed=st.integers(0, 10**9))
def test_a_damaged_model_loads_or_is_refused(folders, file, way, seed):
    whole, damaged = folders
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.copytree(whole, damaged)
    (damaged / file).write_bytes(_damage((whole / file).read_bytes(), way, random.Random(seed), file.endswith(".json")))
    try:
        load_base(tiny_plan(damaged))
    except VlmtuneError as error:
        assert error.message and error.hint


def _damage(content: bytes, way: str, rng: random.Random, is_json: bool) -> bytes:
    """Return the file cut off, with one byte of its JSON changed, or with one value of its JSON replaced."""
    start, end = (0, len(content)) if is_json else (8, 8 + int.from_bytes(content[:8], "little"))
    if way == "cut":
        return content[: rng.randrange(len(content))]
    if way == "flip":
        place = rng.randrange(end)
        return content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :]
    text = json.dumps(_with_one_value_replaced(json.loads(content[start:end]), rng)).encode()
    return text if is_json else len(text).to_bytes(8, "little") + text + content[end:]


def _with_one_value_replaced(value, rng: random.Random):
    *way, last = rng.choice(list(_paths(value)))
    owner = value
    for key in way:
        owner = owner[key]
    owner[last] = rng.choice(VALUES)
    return value


def _paths(value, before=()):
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*before, key)
        yield from _paths(part, (*before, key))
