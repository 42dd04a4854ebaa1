"""Image tokens are counted as the processor makes them, and refused where it refuses: every family, every shape."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import TINY
from tiny.rows import tiny_plan

from vlmtune.data.encode import encode
from vlmtune.data.images import shrunk_size_px
from vlmtune.data.measure.counting import PROBE
from vlmtune.errors import VlmtuneError
from vlmtune.families import find_family
from vlmtune.families.base import RefusedImage
from vlmtune.hub.source import open_model
from vlmtune.models.processor import load_processor

LONG, SHORT = st.integers(1, 4000), st.integers(1, 90)
SIZES_PX = st.one_of(
    st.tuples(LONG, SHORT), st.tuples(SHORT, LONG), st.tuples(st.integers(1, 700), st.integers(1, 700))
)
PUBLISHED = {  # as the files of Qwen2-VL and Qwen2.5-VL name them, and between narrow bounds
    "qwen2_vl": [{"min_pixels": 3136, "max_pixels": 12845056}, {"min_pixels": 56 * 56, "max_pixels": 70 * 70}],
    "qwen2_5_vl": [{"min_pixels": 3136, "max_pixels": 12845056}, {"max_pixels": 100_000}],
    "qwen3_vl": [{"size": {"shortest_edge": 65536, "longest_edge": 16777216}}],
    "smolvlm": [{"size": {"longest_edge": 224}}, {"do_image_splitting": False}],
    "idefics3": [{"size": {"longest_edge": 280}}],
}
FILES = [(name, limits) for name in sorted(TINY) for limits in [None, *PUBLISHED.get(name, [])]]


@pytest.fixture(scope="module", params=FILES, ids=str)
def files(request, models, tmp_path_factory):
    """A tiny model whose image processor has these limits in its files: (its folder, source)."""
    name, limits = request.param
    folder = tmp_path_factory.mktemp("files") / "model"
    shutil.copytree(models(name).folder, folder)
    if limits:
        path = folder / "processor_config.json"
        whole = json.loads(path.read_text())
        kept = {key: value for key, value in whole["image_processor"].items() if key != "size"}
        whole["image_processor"] = {**kept, **limits}
        path.write_text(json.dumps(whole))
    return folder, open_model(str(folder), None, folder)


@settings(max_examples=40, deadline=None)
@given(size_px=SIZES_PX, image_size=st.none() | st.integers(28, 1500))
@example(size_px=(200, 12), image_size=None)
@example(size_px=(640, 13), image_size=None)
@example(size_px=(1, 1), image_size=None)
@example(size_px=(4000, 10), image_size=None)
@example(size_px=(10, 4000), image_size=1024)
@example(size_px=(600, 600), image_size=500)
@example(size_px=(3, 1), image_size=None)
def test_image_tokens_are_those_of_the_processor(files, size_px, image_size):
    folder, source = files
    family = find_family(source.config, folder.name)
    plan = tiny_plan(folder, data={"train_path": "rows.jsonl", "image_size": image_size})
    shown_px = shrunk_size_px(size_px, image_size)
    try:
        made = encode(PROBE, [Image.new("RGB", shown_px, "red")], load_processor(plan), family).num_image_tokens
    except VlmtuneError as error:
        assert "the processor refuses this row" in error.message
        with pytest.raises(RefusedImage):
            family.image_tokens(source.config, plan.preprocessor(source.preprocessor), *shown_px)
    else:
        assert family.image_tokens(source.config, plan.preprocessor(source.preprocessor), *shown_px) == made


def test_a_model_without_a_family_of_its_own_refuses_what_its_processor_refuses():
    source = open_model("Qwen/Qwen3.5-0.8B", None, Path.cwd(), offline_catalog=True)
    family = find_family(source.config, "Qwen3.5")
    assert family.image_tokens(source.config, source.preprocessor, 1500, 12) > 0
    for size_px in ((1500, 7), (7, 1500), (1, 201)):
        with pytest.raises(RefusedImage, match="processor refuses an image: absolute aspect ratio") as why:
            family.image_tokens(source.config, source.preprocessor, *size_px)
        assert why.value.hint == "replace it, or remove the row"
