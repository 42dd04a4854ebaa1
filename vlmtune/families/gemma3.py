"""Gemma 3: SigLIP tower at 896 px, 256 tokens an image; image tokens see each other in both directions."""

from vlmtune.families.base import CLIP_LINEARS, LLAMA_LINEARS, Family, ImageSettings, Json, fixed_input

MARKERS = 4  # newline pair, begin, end, newline pair


def image_tokens(config: Json, preprocessor: Json, width_px: int, height_px: int) -> int:
    """A fixed number, whatever the image's size."""
    return config.get("mm_tokens_per_image", 256) + MARKERS


def image_settings(config: Json, preprocessor: Json, image_size: int | None) -> ImageSettings:
    """The tower has a fixed input."""
    return fixed_input((config.get("vision_config") or {}).get("image_size", 896), image_size)


FAMILY = Family(
    name="gemma3",
    sees_both_ways=True,
    model_types=("gemma3",),
    text="model.language_model",
    vision="model.vision_tower",
    projector=("model.multi_modal_projector",),
    text_linears=LLAMA_LINEARS,
    vision_linears=CLIP_LINEARS,
    image_tokens=image_tokens,
    image_settings=image_settings,
)
