"""The rows of a run that is estimated: rendered and tokenised once, whatever the number of plans looked at."""

import json
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from vlmtune.data.reading.data_files import DataFiles
from vlmtune.data.run_data import MeasuredRows
from vlmtune.data.sources.takes import Takes, rows_per_epoch, takes_of
from vlmtune.data.types import Sample, num_images
from vlmtune.families.facts import ModelFacts
from vlmtune.hub.source import ModelSource
from vlmtune.plan.types import RunPlan

if TYPE_CHECKING:
    import numpy as np
    from transformers import ProcessorMixin

    from vlmtune.data.dataset import TuneDataset
    from vlmtune.data.encode import Encoded
    from vlmtune.data.measure.lengths import Lengths


UNWEIGHTED = DataFiles(())
NONE = MeasuredRows(())


class GivenRows:
    """Rows with what every plan of one model shares: their measures, and a processor for each setting of it."""

    def __init__(self, rows: MeasuredRows, held_out: MeasuredRows = NONE, files: DataFiles = UNWEIGHTED) -> None:
        """`files` are those that the rows to train on are in: their sources may have weights."""
        self.samples = rows.samples
        self.held_out = held_out
        self.files = files
        self._rows = rows
        self._processors: dict[str, ProcessorMixin] = {}

    @property
    def num_rows(self) -> int:
        """Rows to train on in one epoch."""
        return rows_per_epoch(self.samples, self.files)

    @property
    def num_images(self) -> int:
        """Images of all rows, those held out included."""
        return num_images(self.samples) + num_images(self.held_out.samples)

    def image_tokens(self, plan: RunPlan, model: ModelFacts) -> int:
        """Return the tokens of all images; their headers are read once."""
        from vlmtune.data.measure.lengths import tokens_of_images

        return tokens_of_images(self._sizes_px, plan, model)

    @cached_property
    def _sizes_px(self) -> "np.ndarray":
        import numpy as np

        from vlmtune.data.measure.lengths import images_of

        return np.concatenate([images_of(part)[1] for part in (self.samples, self.held_out.samples)])

    def free_cache_bytes(self) -> int | None:
        """Return what may be written into the cache folder; None where it cannot be written."""
        from vlmtune.data.features.store import free_bytes

        return free_bytes()

    def processor(self, plan: RunPlan) -> "ProcessorMixin":
        """Return the model's processor as the plan sets it."""
        setting = json.dumps(plan.image_overrides, sort_keys=True, default=str)
        if setting not in self._processors:
            self._processors[setting] = self._load(plan)
        return self._processors[setting]

    def _load(self, plan: RunPlan) -> "ProcessorMixin":
        from vlmtune.models.processor import load_processor

        return load_processor(plan)

    def dataset(self, plan: RunPlan, *, held_out: bool = False) -> "Sequence[Encoded]":
        """Return the rows as a model gets them."""
        return self._seen(self.encoded(plan, held_out=held_out), plan)

    def encoded(self, plan: RunPlan, *, held_out: bool = False) -> "TuneDataset":
        """Return the rows as the processor makes them."""
        from vlmtune.data.dataset import TuneDataset
        from vlmtune.models.build import family_of

        return TuneDataset(self._fitting(plan, held_out).samples, self.processor(plan), family_of(plan), plan)

    def _seen(self, rows: "TuneDataset", plan: RunPlan) -> "Sequence[Encoded]":
        """Return rows as the model sees them."""
        return rows

    def takes(self, plan: RunPlan, samples: Sequence[Sample]) -> Takes | None:
        """Return which of some of the rows an epoch takes; None where it takes each once."""
        return takes_of(samples, self.files, plan)

    def lengths(self, plan: RunPlan, source: ModelSource, *, held_out: bool = False) -> "Lengths":
        """Return the tokens under a plan of each row that the model takes.

        Raises:
            VlmtuneError: rows that the model cannot take and that are not skipped, or image tokens counted wrongly.
        """
        from vlmtune.models.build import family_of

        return self._fitting(plan, held_out).lengths(self.processor(plan), family_of(plan), plan, source)

    def _fitting(self, plan: RunPlan, held_out: bool) -> MeasuredRows:
        from vlmtune.models.build import family_of

        rows = self.held_out if held_out else self._rows
        return rows.fitting(self.processor(plan), family_of(plan), plan)[0]
