"""How image processors are set for a `data.image_size`, by the settings they have: shared by families."""

from vlmtune.families import qwen2_vl, smolvlm
from vlmtune.families.base import ImageSettings, Json, fixed_input


def tile_settings(preprocessor: Json, image_size: int, most: str, tile_px: int) -> ImageSettings:
    """Set the number of tiles named `most`, so that they cover no more than image_size² pixels: at least one."""
    tiles = max(1, min(preprocessor[most], (image_size // tile_px) ** 2))
    note = f"{image_size} is less than a tile: one {tile_px}×{tile_px} view per image" if image_size < tile_px else None
    return ImageSettings({most: tiles}, note)


def image_settings(config: Json, preprocessor: Json, image_size: int | None) -> ImageSettings:
    """Set what the image processor has; say so when it has nothing to set."""
    if image_size is None:
        return ImageSettings({})
    size = preprocessor.get("size") or {}
    if "max_image_size" in preprocessor and "longest_edge" in size:
        return smolvlm.image_settings(config, preprocessor, image_size)
    if "merge_size" in preprocessor or "max_pixels" in preprocessor:
        return qwen2_vl.image_settings(config, preprocessor, image_size)
    if "image_grid_pinpoints" in preprocessor or "image_grid_pinpoints" in config or "tile_size" in preprocessor:
        return ImageSettings({})  # images come shrunk to image_size, and smaller ones take fewer tiles
    if "max_patches" in preprocessor:
        return tile_settings(preprocessor, image_size, "max_patches", size.get("height", image_size))
    if set(size) == {"longest_edge"}:
        return ImageSettings({"size": {"longest_edge": min(size["longest_edge"], image_size)}})
    side = (config.get("vision_config") or {}).get("image_size")
    if "height" in size:
        return fixed_input(size["height"], image_size)
    if isinstance(side, int):
        return fixed_input(side, image_size)
    return ImageSettings({}, "has no effect: the model's own image processor decides")
