"""Random changes of training pictures, by torchvision's transforms: the same for the same seed, row and take."""

import hashlib
from functools import cache
from typing import TYPE_CHECKING, Any

from vlmtune.plan.types import Augment

if TYPE_CHECKING:
    from PIL.Image import Image

WHITE = 255
"""What corners become when a picture is turned, as transparency does."""


def augmented(images: "list[Image]", augment: Augment, seed: tuple[int, ...]) -> "list[Image]":
    """Return RGB pictures changed at random, each of its size; `seed` decides how, and nothing else."""
    import torch

    with torch.random.fork_rng(devices=[]):  # the transforms know no other source of chance, and dropout shares it
        torch.manual_seed(int.from_bytes(hashlib.sha256(repr(seed).encode()).digest()[:8]))
        return [_transforms(augment)(image) for image in images]


@cache
def _transforms(augment: Augment) -> Any:
    from torchvision.transforms import v2

    steps: list[Any] = []
    if augment.rotation:
        bilinear = v2.InterpolationMode.BILINEAR
        steps.append(v2.RandomRotation(augment.rotation, interpolation=bilinear, fill=WHITE))
    if augment.color_jitter:
        steps.append(v2.ColorJitter(*[augment.color_jitter] * 3))
    if augment.jpeg_quality:
        steps += [v2.PILToTensor(), v2.JPEG((augment.jpeg_quality, 100)), v2.ToPILImage()]
    return v2.Compose(steps)
