"""Decoded pictures of every kind -> RGB with 8 bits a colour, upright. Pillow and numpy are imported on use."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

_DEEP_GREYS = ("I", "F")
"""Beginnings of the modes with 16 or 32 bits: I, I;16, I;16B, F."""
_PHOTOMETRIC_TAG = 262
_SWAPPED = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}
_SWAPPED_COLOURS = {
    f"{mode};{depth}": f"{mode};{other}" for mode in ("RGB", "RGBA") for depth, other in _SWAPPED.items()
}
"""What Pillow calls 16-bit colours in a file -> what it calls them where the bytes of each are the other way round."""


def is_deep(image: "Image") -> bool:
    """Whether the file holds more than 8 bits a colour; nothing is decoded."""
    return image.mode.startswith(_DEEP_GREYS) or is_deep_colour(image)


def is_deep_colour(image: "Image") -> bool:
    """Whether the file holds 16 bits a colour, of which Pillow reads the upper byte only."""
    return _raw_mode(image) in _SWAPPED_COLOURS


def read_lower_bytes(image: "Image") -> None:
    """Let a picture of 16-bit colours, not decoded yet, decode to the lower byte of each colour."""
    image.tile = [type(tile)(*tile[:3], _swapped(tile[3])) for tile in image.tile]


def to_rgb(image: "Image", lower_bytes: "Image | None" = None) -> "Image":
    """The picture in RGB: transparent pixels white, of more than 8 bits the range that it uses.

    `lower_bytes` of a picture of 16-bit colours is the same one as `read_lower_bytes` has it decoded.
    """
    from PIL import Image, ImageOps

    if lower_bytes is not None:
        image = _colours(image, lower_bytes)
    elif image.mode.startswith(_DEEP_GREYS):
        grey = _grey(image)
        return (ImageOps.invert(grey) if _counts_from_white(image) else grey).convert("RGB")
    if not image.has_transparency_data:
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def upright(image: "Image", orientation: int) -> "Image":
    """The picture turned by its EXIF orientation, 1 to 8."""
    from PIL.Image import Transpose

    steps = (
        None,
        Transpose.FLIP_LEFT_RIGHT,
        Transpose.ROTATE_180,
        Transpose.FLIP_TOP_BOTTOM,
        Transpose.TRANSPOSE,
        Transpose.ROTATE_270,
        Transpose.TRANSVERSE,
        Transpose.ROTATE_90,
    )
    step = steps[orientation - 1]
    return image if step is None else image.transpose(step)


def _counts_from_white(image: "Image") -> bool:
    """Whether 0 is white, as in TIFF files of X-rays; Pillow turns levels of 8 bits alone."""
    return image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC_TAG) == 0


def _raw_mode(image: "Image") -> str:
    """What Pillow's reader calls the pixels in the file."""
    args = image.tile[0][3] if image.tile else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _swapped(args: tuple | str) -> tuple | str:
    return _SWAPPED_COLOURS[args] if isinstance(args, str) else (_SWAPPED_COLOURS[args[0]], *args[1:])


def _grey(image: "Image") -> "Image":
    """A picture of 16 or 32 bits over the range that it uses; what is no number becomes black."""
    import numpy as np
    from PIL import Image

    levels = np.asarray(image)
    if levels.dtype.kind == "u":
        return Image.fromarray(_spread(levels))
    levels = levels.astype(np.float32)
    levels[~np.isfinite(levels)] = np.nan
    low, high = (0.0, 1.0) if np.isnan(levels).all() else _range(levels)
    levels -= np.float32(low)
    levels *= np.float32(255 / (high - low))
    return Image.fromarray(np.nan_to_num(np.rint(levels, out=levels), copy=False, nan=0).astype(np.uint8))


def _colours(upper_bytes: "Image", lower_bytes: "Image") -> "Image":
    """16-bit colours over the range that they use, all of them together; how opaque pixels are stays."""
    import numpy as np
    from PIL import Image

    upper, lower = np.asarray(upper_bytes), np.asarray(lower_bytes)
    spread = _spread(upper[..., :3].astype(np.uint16) << 8 | lower[..., :3])
    return Image.fromarray(np.concatenate([spread, upper[..., 3:]], axis=2))


def _spread(levels: "np.ndarray") -> "np.ndarray":
    """16-bit levels over the range that they use: the lowest becomes 0, the highest 255."""
    import numpy as np

    low, high = _range(levels)
    new_level_of = np.clip(np.rint((np.arange(2**16) - low) * (255 / (high - low))), 0, 255).astype(np.uint8)
    return new_level_of[levels]


def _range(levels: "np.ndarray") -> tuple[float, float]:
    """The lowest and the highest level; from 0 on where all are one."""
    import numpy as np

    low, high = float(np.nanmin(levels)), float(np.nanmax(levels))
    if low == high:
        low, high = min(low, 0.0), max(high, 0.0)
    return low, high if high > low else low + 1.0
