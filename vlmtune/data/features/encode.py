"""The frozen tower's work: images in large batches → their features on disk."""

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import ProcessorMixin

from vlmtune.compat.torch import CLEAR_CUBLAS_WORKSPACES
from vlmtune.data.collate import join_images
from vlmtune.data.encode import Encoded, encode
from vlmtune.data.features.images import RowImages
from vlmtune.data.features.rows import image_tensors
from vlmtune.data.features.store import FeatureStore
from vlmtune.data.images import open_image
from vlmtune.data.measure.counting import PROBE
from vlmtune.data.progress import Advance, nobody
from vlmtune.data.types import ImageRef, Sample, Turn
from vlmtune.data.workers import READERS, fitting_workers, num_bytes
from vlmtune.errors import VlmtuneError
from vlmtune.levers.features import KEY
from vlmtune.models.build import build_tower, family_of
from vlmtune.models.features import encode_images, is_of_pixels
from vlmtune.models.processor import image_token_id
from vlmtune.plan.types import RunPlan

NUMBERS_AT_ONCE = 4 * 2**20
"""Numbers of the pixels that the tower is given at once: twelve images of 336×336 px, one of 896×896.

Some 7,000 patches: enough for any card to be busy, and few enough that no model needs more than for a training step.
"""
FILE_BYTES = 256 * 2**20
"""What a file of features is to have: some batches, and what a kill can lose."""

BytesOf = Callable[[tuple[int, int]], int]
"""Width and height of an image → the bytes of its features, at most."""


@dataclass(frozen=True)
class Missing:
    """An image that is still to be encoded."""

    digest: str
    size_px: tuple[int, int]
    images: RowImages
    number: int
    """Its place in the digests of `images`."""

    @property
    def ref(self) -> ImageRef:
        """Where to find it."""
        return self.images.ref(self.number)


def files_of(missing: Sequence[Missing], bytes_of: BytesOf) -> list[list[Missing]]:
    """Return the images of each file, in their order: as many as come to FILE_BYTES.

    Files follow from the images alone, and batches from their file. So it is the same whoever makes which file, and
    what a kill has left out is made in the same files and batches later: features are the same to the bit.
    """
    files: list[list[Missing]] = []
    room = 0
    for image in missing:
        if room <= 0:
            files.append([])
            room = FILE_BYTES
        files[-1].append(image)
        room -= bytes_of(image.size_px)
    return files


def encode_into(
    store: FeatureStore,
    plan: RunPlan,
    files: Sequence[Sequence[Missing]],
    processor: ProcessorMixin,
    advance: Callable[[int], None],
    note: Callable[[str], None],
) -> None:
    """Encode images and keep their features, a file at a time."""
    tower = build_tower(plan)
    if plan.device == "cuda":
        torch.cuda.empty_cache()  # loading passes every weight through 16 bits; those blocks would only lie about
    with READERS.ended():
        images = loaded([image for file in files for image in file], plan, processor, note)
        for file in files:
            features: dict[str, Tensor] = {}
            for batch in batches_of(islice(images, len(file))):
                made, form = features_of_batch(tower, batch, plan)
                features |= dict(zip((image.digest for image in batch), made, strict=True))
                advance(len(batch))
            store.write(features, form)


@dataclass(frozen=True)
class Pixels:
    """An image as the tower takes it."""

    digest: str
    tensors: dict[str, Tensor]
    num_tokens: int
    """Of the language model, those that its features take the place of."""

    @property
    def num_numbers(self) -> int:
        """Numbers of its pixels."""
        return sum(tensor.numel() for tensor in self.tensors.values() if tensor.is_floating_point())

    @property
    def joins(self) -> list:
        """What images of one batch have in common: shapes, but for the number of tiles or patches."""
        return [
            (key, tensor.shape[2 if tensor.ndim > 3 else 1 :])
            for key, tensor in self.tensors.items()
            if is_of_pixels(key, tensor)
        ]


class _ToEncode(Dataset):
    """Images as tensors, opened in the workers."""

    def __init__(self, missing: list[Missing], plan: RunPlan, processor: ProcessorMixin) -> None:
        self.missing, self.plan, self.processor = missing, plan, processor
        self.family = family_of(plan)
        self.on_read: Advance = nobody
        """Told of each image's number before it is read."""

    def __len__(self) -> int:
        return len(self.missing)

    def __getitem__(self, index: int) -> Pixels | VlmtuneError:
        self.on_read(index)
        image = self.missing[index]
        question, answer = PROBE.turns
        sample = Sample((Turn("user", (image.ref, question.text)), answer), PROBE.where)
        try:
            opened = open_image(sample.images[0], self.plan.image_size)
            row = encode(sample, [opened], self.processor, self.family)
        except VlmtuneError as error:  # raised in a worker, it would come out as the text of a traceback
            return error
        return as_pixels(row, self.processor, image.digest)


def as_pixels(row: Encoded, processor: ProcessorMixin, digest: str = "") -> Pixels:
    """Return what the tower takes of a row."""
    num_tokens = int((row.tensors["input_ids"] == image_token_id(processor)).sum())
    return Pixels(digest, image_tensors(row.tensors, row.labels.shape[1]), num_tokens)


def loaded(
    missing: list[Missing], plan: RunPlan, processor: ProcessorMixin, note: Callable[[str], None]
) -> Iterator[Pixels]:
    """Yield the images as tensors, in their order."""
    images = _ToEncode(missing, plan, processor)
    largest = images[max(range(len(missing)), key=lambda index: math.prod(missing[index].size_px))]
    if isinstance(largest, VlmtuneError):
        raise largest
    num_workers = fitting_workers(plan.num_workers, num_bytes(largest.tensors), note)
    loader = DataLoader(images, batch_size=None, num_workers=num_workers)
    for one in READERS.watch(loader, lambda index: missing[index].ref.name):
        if isinstance(one, VlmtuneError):
            raise one
        yield one


def batches_of(images: Iterator[Pixels]) -> Iterator[list[Pixels]]:
    """Yield batches of at most NUMBERS_AT_ONCE, or one image, whose tensors can be joined."""
    batch: list[Pixels] = []
    for image in images:
        numbers = sum(one.num_numbers for one in (*batch, image))
        if batch and (numbers > NUMBERS_AT_ONCE or image.joins != batch[0].joins):
            yield batch
            batch = []
        batch.append(image)
    if batch:
        yield batch


def features_of_batch(tower: nn.Module, batch: list[Pixels], plan: RunPlan) -> tuple[list[Tensor], str]:
    """Return the features of each image of a batch in main memory, and their form.

    Raises:
        VlmtuneError: the tower makes other features than there are image tokens.
    """
    joined = {key: join_images(key, [one.tensors for one in batch]) for key in batch[0].tensors}
    features, form = encode_images(tower, {key: value.to(plan.device) for key, value in joined.items()})
    tokens_each = features.shape[2] if features.ndim > 3 else 1
    counts = [one.num_tokens // tokens_each for one in batch]
    if sum(counts) != features.shape[1]:
        raise VlmtuneError(
            f"{plan.model_name} makes {features.shape[1] * tokens_each} features of images with "
            f"{sum(one.num_tokens for one in batch)} tokens: they cannot be cached",
            f"set {KEY}: false",
        )
    return [piece.contiguous() for piece in features.cpu().split(counts, dim=1)], form


def free_card() -> None:
    """Give back all that the tower took, so that the language model finds the card as if there had been none."""
    gc.collect()
    if torch.cuda.is_available():
        CLEAR_CUBLAS_WORKSPACES()
        torch.cuda.empty_cache()
