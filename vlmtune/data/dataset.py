"""Samples as a map-style dataset: images are opened in the workers, when a row is asked for."""

from collections.abc import Sequence

from torch.utils.data import Dataset, get_worker_info
from transformers import ProcessorMixin

from vlmtune.data.encode import Encoded, cut, encode
from vlmtune.data.images import open_image
from vlmtune.data.types import Sample
from vlmtune.errors import VlmtuneError
from vlmtune.families.base import Family
from vlmtune.plan.types import RunPlan


class TuneDataset(Dataset):
    """Rows as `Encoded`."""

    def __init__(self, samples: Sequence[Sample], processor: ProcessorMixin, family: Family, plan: RunPlan) -> None:
        self.samples = samples
        self.processor = processor
        self.family = family
        self.plan = plan

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Encoded | VlmtuneError:
        """Return the row. What is wrong with it is raised, in a worker returned: torch would make a traceback of it."""
        try:
            return self._row(self.samples[index])
        except VlmtuneError as error:
            if get_worker_info() is None:
                raise
            return error

    def _row(self, sample: Sample) -> Encoded:
        try:
            images = [open_image(ref, self.plan.image_size) for ref in sample.images]
        except VlmtuneError as error:
            raise VlmtuneError(f"{sample.where}: {error.message}", error.hint) from None
        row = encode(sample, images, self.processor, self.family)
        return cut(row, self.plan.max_length) if self.plan.truncation == "cut" else row
