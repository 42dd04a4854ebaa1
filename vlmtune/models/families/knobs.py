"""How image processors are set for a `data.image_size`, by the settings they have: shared by families."""

from vlmtune.models.families import qwen2_vl, smolvlm
from vlmtune.models.families.base import ImageSettings, Json, fixed_input


def tile_settings(preprocessor: Json, image_size: int, most: str, tile_px: int) -> ImageSettings:
    """Set the number of tiles named `most`, so that they cover no more than image_size² pixels: at least one."""
    tiles = max(1, min(preprocessor[most], (image_size // tile_px) ** 2))
    note = f"{image_size} is less than a tile: one {tile_px}×{tile_px} view per image" if image_size < tile_px else None
    return ImageSettings({most: tiles}, note)


def grid_settings(preprocessor: Json, image_size: int) -> ImageSettings:
    """Keep the grids of tiles whose longer side is within image_size, and at least the smallest."""
    grids = preprocessor["image_grid_pinpoints"]
    kept = [grid for grid in grids if max(grid) <= image_size]
    smallest = min(grids, key=lambda grid: grid[0] * grid[1])
    note = None if kept else f"the smallest grid of tiles is {smallest[1]}×{smallest[0]} px: it is used"
    return ImageSettings({"image_grid_pinpoints": kept or [smallest]}, note)


def image_settings(config: Json, preprocessor: Json, image_size: int | None) -> ImageSettings:
    """Set what the image processor has; say so when it has nothing to set."""
    if image_size is None:
        return ImageSettings({})
    size = preprocessor.get("size") or {}
    if "max_image_size" in preprocessor and "longest_edge" in size:
        return smolvlm.image_settings(config, preprocessor, image_size)
    if "merge_size" in preprocessor or "max_pixels" in preprocessor:
        return qwen2_vl.image_settings(config, preprocessor, image_size)
    if preprocessor.get("image_grid_pinpoints"):
        return grid_settings(preprocessor, image_size)
    if preprocessor.get("crop_to_patches") and "max_patches" in preprocessor:
        return tile_settings(preprocessor, image_size, "max_patches", size.get("height", image_size))
    if set(size) == {"longest_edge"}:
        return ImageSettings({"size": {"longest_edge": min(size["longest_edge"], image_size)}})
    side = (config.get("vision_config") or {}).get("image_size")
    if "height" in size:
        return fixed_input(size["height"], image_size)
    if isinstance(side, int):
        return fixed_input(side, image_size)
    return ImageSettings({}, "has no effect: the model's own image processor decides")
