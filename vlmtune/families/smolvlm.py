"""SmolVLM, SmolVLM2 and Idefics3: square tiles of the image plus one overview, each a fixed number of tokens."""

import math

from vlmtune.families.base import CLIP_LINEARS, LLAMA_LINEARS, Family, ImageSettings, Json

LARGEST_SIDE_PX = 4096  # the processor never resizes beyond this
DEFAULT_TILE_PX = 364
DEFAULT_TILES_PER_SIDE = 4


def _tile_px(preprocessor: Json) -> int:
    return (preprocessor.get("max_image_size") or {}).get("longest_edge", DEFAULT_TILE_PX)


def _longest_px(preprocessor: Json) -> int:
    default = DEFAULT_TILES_PER_SIDE * _tile_px(preprocessor)
    return min(LARGEST_SIDE_PX, (preprocessor.get("size") or {}).get("longest_edge", default))


def _grid(preprocessor: Json, width_px: int, height_px: int) -> tuple[int, int]:
    """Rows and columns of tiles; (0, 0) when the overview alone is used."""
    if not preprocessor.get("do_image_splitting", True):
        return 0, 0
    tile_px, longest_px = _tile_px(preprocessor), _longest_px(preprocessor)
    if width_px >= height_px:
        width, height = longest_px, int(longest_px / (width_px / height_px))
        height += height % 2
        columns = math.ceil(width / tile_px)
        rows = math.ceil(int(columns * tile_px / (width / max(height, 1))) / tile_px)
    else:
        height, width = longest_px, int(longest_px * (width_px / height_px))
        width += width % 2
        rows = math.ceil(height / tile_px)
        columns = math.ceil(int(rows * tile_px * (max(width, 1) / height)) / tile_px)
    rows, columns = max(rows, 1), max(columns, 1)
    return (rows, columns) if rows * columns > 1 else (0, 0)


def image_tokens(config: Json, preprocessor: Json, width_px: int, height_px: int) -> int:
    """Every tile with its marker, a newline a row, and the overview between two markers."""
    vision = config.get("vision_config") or {}
    tile_px = vision.get("image_size", _tile_px(preprocessor))
    tokens_per_tile = (tile_px // vision.get("patch_size", 14)) ** 2 // config.get("scale_factor", 2) ** 2
    rows, columns = _grid(preprocessor, width_px, height_px)
    overview = tokens_per_tile + 3
    # The last row's newline and the one before the overview are a single token.
    return overview + rows * (columns * (tokens_per_tile + 2) + 1)


def image_settings(config: Json, preprocessor: Json, image_size: int | None) -> ImageSettings:
    """As many whole tiles as fit into image_size, and at least the overview: the tower takes whole tiles only."""
    if image_size is None:
        return ImageSettings({})
    tile_px = _tile_px(preprocessor)
    if image_size < 2 * tile_px:
        note = f"{image_size} is less than two tiles of {tile_px} px: one {tile_px}×{tile_px} view per image"
        return ImageSettings({"do_image_splitting": False, "size": {"longest_edge": tile_px}}, note)
    longest_px = min(image_size // tile_px * tile_px, _longest_px(preprocessor))
    return ImageSettings({"size": {"longest_edge": longest_px}})


FAMILY = Family(
    name="smolvlm",
    model_types=("smolvlm", "idefics3"),
    text="model.text_model",
    vision="model.vision_model",
    projector=("model.connector",),
    text_linears=LLAMA_LINEARS,
    vision_linears=CLIP_LINEARS,
    image_tokens=image_tokens,
    image_settings=image_settings,
    casts_features=False,  # transformers 5.17 does not for SmolVLM2
)
