"""Qwen2-VL and Qwen2.5-VL: a tower that takes any resolution; four patches become one token."""

import math

from vlmtune.families.base import LLAMA_LINEARS, Family, ImageSettings, Json, RefusedImage
from vlmtune.families.boxes import QWEN2_VL, BoxConvention

DEFAULT_PATCH_PX = 14
LARGEST_RATIO = 200


def _pixel_limits(preprocessor: Json) -> tuple[int, int]:
    """Least and most pixels of a resized image; old files say min_pixels, new ones size.shortest_edge."""
    size = preprocessor.get("size") or {}
    least = preprocessor.get("min_pixels") or size.get("shortest_edge") or 56 * 56
    most = preprocessor.get("max_pixels") or size.get("longest_edge") or 28 * 28 * 1280
    return least, most


def resized(width_px: int, height_px: int, grid_px: int, least: int, most: int) -> tuple[int, int]:
    """Width and height after the processor's resize: multiples of `grid_px`, area within [least, most] pixels.

    Raises:
        RefusedImage: one side is more than 200 times the other.
    """
    if max(width_px, height_px) > LARGEST_RATIO * min(width_px, height_px):
        raise RefusedImage(
            f"this model takes no image with one side over {LARGEST_RATIO} times the other",
            "cut the image into pieces, or put it on a larger background",
        )
    # A side below half a step becomes 0: so the processor enlarges such an image, by both sides.
    width, height = round(width_px / grid_px) * grid_px, round(height_px / grid_px) * grid_px
    if width * height > most:
        shrink = math.sqrt(width_px * height_px / most)
        width = max(grid_px, math.floor(width_px / shrink / grid_px) * grid_px)
        height = max(grid_px, math.floor(height_px / shrink / grid_px) * grid_px)
    elif width * height < least:
        grow = math.sqrt(least / (width_px * height_px))
        width = math.ceil(width_px * grow / grid_px) * grid_px
        height = math.ceil(height_px * grow / grid_px) * grid_px
    return width, height


def image_tokens(config: Json, preprocessor: Json, width_px: int, height_px: int) -> int:
    """One token per merged group of patches; the start and end markers count as text."""
    vision = config.get("vision_config") or {}
    patch_px = preprocessor.get("patch_size") or vision.get("patch_size", DEFAULT_PATCH_PX)
    grid_px = patch_px * (preprocessor.get("merge_size") or vision.get("spatial_merge_size", 2))
    width, height = resized(width_px, height_px, grid_px, *_pixel_limits(preprocessor))
    return (width // grid_px) * (height // grid_px)


def input_size_px(preprocessor: Json, width_px: int, height_px: int) -> tuple[int, int]:
    """Width and height of an image as the tower is given it."""
    grid_px = preprocessor.get("patch_size", DEFAULT_PATCH_PX) * preprocessor.get("merge_size", 2)
    return resized(width_px, height_px, grid_px, *_pixel_limits(preprocessor))


QWEN2_5_VL = BoxConvention(
    "qwen2_5_vl", "[x1, y1, x2, y2] in pixels of the picture as the model sees it", input_size_px=input_size_px
)


def image_settings(config: Json, preprocessor: Json, image_size: int | None) -> ImageSettings:
    """Cap the area at image_size²: never less than what an image within the longest side may have."""
    if image_size is None:
        return ImageSettings({})
    least, most = _pixel_limits(preprocessor)
    capped = max(least, min(most, image_size * image_size))
    note = None
    if image_size * image_size < least:
        note = f"images below {least} pixels are enlarged to that by the model's own processor"
    return ImageSettings({"size": {"shortest_edge": least, "longest_edge": capped}}, note)


FAMILY = Family(
    name="qwen2_vl",
    model_types=("qwen2_vl", "qwen2_5_vl"),
    text="model.language_model",
    vision="model.visual",
    projector=("model.visual.merger",),
    text_linears=LLAMA_LINEARS,
    vision_linears=("qkv", "proj", "fc1", "fc2", "gate_proj", "up_proj", "down_proj"),
    image_tokens=image_tokens,
    image_settings=image_settings,
    tower_loops=True,
    boxes={"qwen2_vl": QWEN2_VL, "qwen2_5_vl": QWEN2_5_VL},
)
