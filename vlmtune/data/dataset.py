"""Samples as a map-style dataset: images are opened, or features read, in the workers, when a row is asked for."""

from collections.abc import Iterator, Sequence

from PIL.Image import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from transformers import ProcessorMixin

from vlmtune.data.batches.order import NO_ROW
from vlmtune.data.boxes.writing import written
from vlmtune.data.encode import Encoded, cut, encode, encode_prompt
from vlmtune.data.features.rows import RowFeatures, features_for_pixels, with_features
from vlmtune.data.images import open_image
from vlmtune.data.pictures.augment import augmented
from vlmtune.data.progress import Advance, nobody
from vlmtune.data.sources.takes import Takes
from vlmtune.data.types import Sample
from vlmtune.errors import VlmtuneError
from vlmtune.families.base import Family
from vlmtune.models.features import FEATURES, PIXELS
from vlmtune.plan.types import RunPlan


class TuneDataset(Dataset):
    """Rows as `Encoded`."""

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: ProcessorMixin,
        family: Family,
        plan: RunPlan,
        features: RowFeatures | None = None,
    ) -> None:
        """With `features` no image is opened: rows carry what the tower made of them."""
        self.samples = written(samples, plan, processor, family)
        self.processor = processor
        self.family = family
        self.plan = plan
        self.features = features
        self.takes: Takes | None = None
        """Which rows an epoch takes, where these are trained on: then pictures are changed as the plan says."""
        self.on_read: Advance = nobody
        """Told of each row's number before it is read."""

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Encoded]:
        """Yield each row once; without this, Python would count on past the last, which is the first again."""
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> Encoded | VlmtuneError | None:
        """Return the row. What is wrong with it is raised, in a worker returned: torch would make a traceback of it."""
        if index == NO_ROW:
            return None
        take, row = divmod(index, len(self))
        self.on_read(row)
        try:
            return self._row(row, take)
        except VlmtuneError as error:
            if get_worker_info() is None:
                raise
            return error

    def _row(self, index: int, take: int) -> Encoded:
        row = encode(self.samples[index], self._images(index, take), self._processor, self.family)
        if self.features:
            row = with_features(row, self.features.of_row(index))
        return cut(row, self.plan.max_length) if self.plan.truncation == "cut" else row

    def prompt(self, index: int) -> dict[str, Tensor]:
        """Return everything before a row's last answer, as the model sees it when it is asked."""
        prompt = encode_prompt(self.samples[index], self._images(index), self._processor, self.family)
        features = self.features.of_row(index) if self.features else None
        if features is None:
            return prompt
        prompt = features_for_pixels(prompt, prompt["input_ids"].shape[1], features)
        prompt[PIXELS] = prompt.pop(FEATURES)
        return prompt

    @property
    def _processor(self) -> ProcessorMixin:
        return self.features.processor if self.features else self.processor

    def _images(self, index: int, take: int = 0) -> list[Image]:
        """Return the row's pictures; where their features are known, blanks of their sizes."""
        if self.features:
            return self.features.blanks(index)
        sample = self.samples[index]
        try:
            images = [open_image(ref, self.plan.image_size) for ref in sample.images]
        except VlmtuneError as error:
            raise VlmtuneError(f"{sample.where}: {error.message}", error.hint) from None
        if self.takes is None or not self.plan.augment.is_on:
            return images
        return augmented(images, self.plan.augment, (self.plan.seed, sample.number, take))
