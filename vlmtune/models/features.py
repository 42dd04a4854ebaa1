"""What a tower makes of images, as one tensor; and models that are given such tensors in place of pixels.

Shapes: K outputs (what the language model reads, then what its first layers are given), N tokens of all images,
n tiles of T tokens each, H hidden size of the language model. A batch of features is [K, N, H] or [K, n, T, H].
"""

import hashlib
from functools import partial
from types import SimpleNamespace

import torch
from safetensors import safe_open
from torch import Tensor, nn

from vlmtune.families.base import Family
from vlmtune.hub.shards import StoredTensor
from vlmtune.models.verify import sources_in

FEATURES = "image_features"
"""Key under which a row carries features; its batch has them under PIXELS, where the model's forward pass looks."""
PIXELS = "pixel_values"
PIXEL_DIMS = 3
"""From so many dimensions on, a tensor of an image belongs to its pixels: masks of them, their places."""
LIST, TENSOR = "lt"
"""The two ways in which a model gives an output to its own forward pass: one tensor an image, or one of all."""


def is_of_pixels(key: str, value: Tensor) -> bool:
    """Return whether a tensor of images is read by the tower alone; grids and sizes, which places need, are not."""
    return key == PIXELS or value.is_floating_point() or value.ndim >= PIXEL_DIMS


def encode_images(base: nn.Module, images: dict[str, Tensor]) -> tuple[Tensor, str]:
    """Return the features of a batch of images and their form, as the model's own forward pass would have them made.

    The form has a letter for each of the K outputs, LIST or TENSOR.
    """
    with torch.no_grad():
        out = base.base_model.get_image_features(**images)
    outputs = (out.pooler_output, *(getattr(out, "deepstack_features", None) or ()))
    form = "".join(TENSOR if isinstance(output, Tensor) else LIST for output in outputs)
    return torch.stack([output if isinstance(output, Tensor) else torch.cat(tuple(output)) for output in outputs]), form


def serve_features(base: nn.Module, form: str) -> None:
    """Let the model take features of this form for pixels: its forward pass runs as it is, and asks no tower."""
    base.base_model.get_image_features = partial(_served, form)


def _served(form: str, pixel_values: Tensor, *args, **kwargs) -> SimpleNamespace:
    """Return [K, N, H] or [K, n, T, H] as the library returns them."""
    first, *deep = (
        features if kind == TENSOR else (features,) for kind, features in zip(form, pixel_values.unbind(), strict=True)
    )
    return SimpleNamespace(pooler_output=first, deepstack_features=deep, last_hidden_state=None)


def tower_sha256(tower: nn.Module, stored: dict[str, StoredTensor], family: Family) -> str:
    """Return the digest of the numbers that the files have for a tower, which may be weightless."""
    digest = hashlib.sha256()
    for name in sorted(sources_in(tower, stored, family)):
        with safe_open(stored[name].file, framework="pt") as file:
            tensor = file.get_tensor(name).contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
