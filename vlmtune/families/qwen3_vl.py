"""Qwen3-VL: as Qwen2-VL with 16-pixel patches, and tower features fed to the first layers too (deepstack)."""

from vlmtune.families.base import LLAMA_LINEARS, Family
from vlmtune.families.qwen2_vl import image_settings, image_tokens

FAMILY = Family(
    name="qwen3_vl",
    model_types=("qwen3_vl",),
    text="model.language_model",
    vision="model.visual",
    projector=("model.visual.merger", "model.visual.deepstack_merger_list"),
    text_linears=LLAMA_LINEARS,
    vision_linears=("qkv", "proj", "linear_fc1", "linear_fc2"),
    image_tokens=image_tokens,
    image_settings=image_settings,
    tower_loops=True,
)
