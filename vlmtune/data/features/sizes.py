"""Processors that look at no pixel: all but the pixels themselves follows from the sizes of a row's images."""

from collections.abc import Sequence
from copy import copy
from functools import partial
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from vlmtune.models.features import is_of_pixels

KEPT = 4096
"""Sizes whose results are kept."""


def blank(size_px: Sequence[int]) -> Image.Image:
    """Return a picture of this size, without content."""
    return Image.new("L", tuple(size_px))


def processor_of_sizes(processor: ProcessorMixin) -> ProcessorMixin:
    """Return the processor as it is, but that images of sizes seen before are not processed: pixels are zeros."""
    quick = copy(processor)
    quick.image_processor = copy(processor.image_processor)
    quick.image_processor.preprocess = partial(_by_sizes, processor.image_processor, {})
    return quick


def _by_sizes(image_processor: Any, known: dict, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
    """Return what the image processor makes of pictures of these sizes."""
    key = (str(_sizes_of(images)), repr(args), repr(sorted(kwargs.items())))
    if key not in known:
        if len(known) >= KEPT:
            known.clear()
        made = image_processor.preprocess(_in_colour(images), *args, **kwargs)
        known[key] = {name: _without_storage(name, value) for name, value in made.items()}
    return BatchFeature(dict(known[key]))


def _sizes_of(images: Any) -> Any:
    return images.size if isinstance(images, Image.Image) else [_sizes_of(image) for image in images]


def _in_colour(images: Any) -> Any:
    return images.convert("RGB") if isinstance(images, Image.Image) else [_in_colour(image) for image in images]


def _without_storage(name: str, value: Any) -> Any:
    """Return zeros in place of pixels, all of them one number."""
    if isinstance(value, Tensor) and is_of_pixels(name, value):
        return value.new_zeros(()).expand(value.shape)
    return value
