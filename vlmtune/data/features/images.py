"""Which images rows have: each once, by its content. Files are read, and of pictures their headers; none is decoded."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from vlmtune.data.images import image_bytes, image_size_px, shrunk_size_px
from vlmtune.data.progress import Progress
from vlmtune.data.types import ImageRef, Sample, num_images
from vlmtune.errors import VlmtuneError

DIGEST_DIGITS = 32
NUM_THREADS = 4
AT_ONCE = 256
"""Images whose bytes may be in memory."""


@dataclass(frozen=True)
class RowImages:
    """The images of N rows, M in all, U of them different."""

    samples: Sequence[Sample] = field(repr=False)
    digests: tuple[str, ...]
    """Of the content of each image, once, [U]."""
    sizes_px: np.ndarray
    """Width and height as the processor is given it, [U, 2]."""
    places: np.ndarray
    """Row and number in its row of the first image with this content, [U, 2]."""
    of_images: np.ndarray
    """Place in `digests` of each image, row after row, [M]."""
    ends: np.ndarray
    """Where each row ends in `of_images`, [N]."""

    def of_row(self, row: int) -> list[int]:
        """Return the places in `digests` of a row's images, in their order."""
        start = int(self.ends[row - 1]) if row else 0
        return self.of_images[start : int(self.ends[row])].tolist()

    def ref(self, number: int) -> ImageRef:
        """Return where to find the image at a place in `digests`."""
        row, place = self.places[number].tolist()
        return self.samples[row].images[place]


def row_images(samples: Sequence[Sample], max_side_px: int | None, progress: Progress) -> RowImages:
    """Return the images of rows as they are shrunk to `max_side_px`.

    Raises:
        VlmtuneError: an image cannot be read.
    """
    numbers: dict[str, int] = {}
    sizes_px, places, of_images = [], [], []
    counts = np.zeros(len(samples), np.int64)
    with progress("reading images", num_images(samples)) as advance:
        for row, place, digest, size_px in _looked_at(samples):
            number = numbers.setdefault(digest, len(numbers))
            if number == len(places):
                places.append((row, place))
                sizes_px.append(shrunk_size_px(size_px, max_side_px))
            of_images.append(number)
            counts[row] += 1
            advance(1)
    return RowImages(
        samples,
        tuple(numbers),
        np.array(sizes_px, np.int32).reshape(-1, 2),
        np.array(places, np.int32).reshape(-1, 2),
        np.array(of_images, np.int32),
        np.cumsum(counts),
    )


def _looked_at(samples: Sequence[Sample]) -> Iterator[tuple[int, int, str, tuple[int, int]]]:
    """Yield row, number in its row, digest and size of every image; several files are read at once."""
    images = ((row, place, sample) for row, sample in enumerate(samples) for place in range(len(sample.images)))
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        while some := list(islice(images, AT_ONCE)):
            yield from pool.map(_look_at, some)


def _look_at(image: tuple[int, int, Sample]) -> tuple[int, int, str, tuple[int, int]]:
    row, place, sample = image
    try:
        data = image_bytes(sample.images[place])
        size_px = image_size_px(ImageRef(data=data))
    except VlmtuneError as error:
        raise VlmtuneError(f"{sample.where}: {error.message}", error.hint) from None
    return row, place, hashlib.sha256(data).hexdigest()[:DIGEST_DIGITS], size_px
