"""Rows that carry features in place of pixels."""

from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from vlmtune.data.encode import Encoded, is_token_tensor
from vlmtune.data.features.images import RowImages
from vlmtune.data.features.sizes import blank, processor_of_sizes
from vlmtune.data.features.store import FeatureStore
from vlmtune.models.features import FEATURES, is_of_pixels


class RowFeatures:
    """The features of the images of rows, read when a row is asked for."""

    def __init__(self, images: RowImages, store: FeatureStore, processor: ProcessorMixin) -> None:
        self.images = images
        self.store = store
        self.processor = processor_of_sizes(processor)
        """Makes the row's texts with the right number of image tokens, and looks at no pixel."""

    @property
    def form(self) -> str | None:
        """How the model gives features to itself; None where no row has an image."""
        return self.store.form

    def blanks(self, row: int) -> list[Image.Image]:
        """Return pictures of the sizes of a row's."""
        return [blank(self.images.sizes_px[number].tolist()) for number in self.images.of_row(row)]

    def of_row(self, row: int) -> Tensor | None:
        """Return the features of all images of a row, joined: [K, N, H] or [K, n, T, H]."""
        found = [self.store[self.images.digests[number]] for number in self.images.of_row(row)]
        return torch.cat(found, dim=1) if found else None


def with_features(row: Encoded, features: Tensor | None) -> Encoded:
    """Return the row with features for pixels; what places and texts need of the images stays."""
    return replace(row, tensors=features_for_pixels(row.tensors, row.labels.shape[1], features))


def features_for_pixels(tensors: dict[str, Tensor], num_tokens: int, features: Tensor | None) -> dict[str, Tensor]:
    """Return the tensors of a row, or of its prompt, with features in place of all that the tower alone reads."""
    if features is None:
        return tensors
    of_pixels = image_tensors(tensors, num_tokens)
    kept = {key: value for key, value in tensors.items() if key not in of_pixels or not is_of_pixels(key, value)}
    return {**kept, FEATURES: features}


def image_tensors(tensors: dict[str, Tensor], num_tokens: int) -> dict[str, Tensor]:
    """Return what a row's tensors hold of its images."""
    return {key: value for key, value in tensors.items() if not is_token_tensor(key, value, num_tokens)}
