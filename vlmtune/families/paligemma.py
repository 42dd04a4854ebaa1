"""PaliGemma 1 and 2: SigLIP tower with a fixed input, and a prefix language model: one prompt, one answer, no chat."""

from vlmtune.families.base import CLIP_LINEARS, LLAMA_LINEARS, Family, ImageSettings, Json, fixed_input
from vlmtune.families.boxes import PALIGEMMA


def _side_px(config: Json) -> int:
    return (config.get("vision_config") or {}).get("image_size", 224)


def image_tokens(config: Json, preprocessor: Json, width_px: int, height_px: int) -> int:
    """Patches of the square input."""
    return (_side_px(config) // (config.get("vision_config") or {}).get("patch_size", 14)) ** 2


def image_settings(config: Json, preprocessor: Json, image_size: int | None) -> ImageSettings:
    """The tower has a fixed input, which is in the model's name."""
    return fixed_input(_side_px(config), image_size)


FAMILY = Family(
    name="paligemma",
    model_types=("paligemma",),
    text="model.language_model",
    vision="model.vision_tower",
    projector=("model.multi_modal_projector",),
    text_linears=LLAMA_LINEARS,
    vision_linears=CLIP_LINEARS,
    image_tokens=image_tokens,
    image_settings=image_settings,
    prefix_lm=True,
    sees_both_ways=True,
    needs_image=True,
    boxes={"paligemma": PALIGEMMA},
)
