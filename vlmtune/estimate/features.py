"""Cached features without weights: what rows carry in place of pixels, and what encoding takes before training."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from vlmtune.data.collate import join_images
from vlmtune.data.encode import Encoded
from vlmtune.data.features.encode import NUMBERS_AT_ONCE, Pixels
from vlmtune.data.features.rows import image_tensors, with_features
from vlmtune.estimate.allocator.caching import EMPTY_CACHE, RESET_PEAK
from vlmtune.estimate.simulate.device import as_on_device
from vlmtune.estimate.simulate.record import ACTIVATIONS, INPUTS, Hidden, Log, Recorder
from vlmtune.estimate.simulate.simulation import add_residents
from vlmtune.estimate.simulate.weights import load_checkpoint
from vlmtune.estimate.work import values_of
from vlmtune.models.build import build_tower
from vlmtune.models.features import encode_images
from vlmtune.plan.types import RunPlan

NUM_ROWS = 1000
"""Of a run whose rows are not known."""
NUM_BATCHES = 2
"""The second finds what the first has left unused."""


class WeightlessTower:
    """The tower of a plan that caches features, for rows that are estimated."""

    def __init__(self, plan: RunPlan) -> None:
        self.plan = plan
        self.form: str | None = None
        """How the model gives features to itself; None until a row with an image was served."""
        self._features: dict[tuple, Tensor] = {}
        """Without values: the same for all images of one size."""

    @cached_property
    def model(self) -> nn.Module:
        """Tower and projector."""
        return build_tower(self.plan, weights="none")

    def served(self, row: Encoded) -> Encoded:
        """Return the row with features for pixels, as training has it."""
        images = image_tensors(row.tensors, row.labels.shape[1])
        if not images:
            return row
        sizes = tuple((key, value.shape, values_of(value)) for key, value in images.items())
        if sizes not in self._features:
            with as_on_device(self.plan), Recorder():
                self._features[sizes], self.form = encode_images(self.model, _copied(images))
        return with_features(row, self._features[sizes])


@dataclass(frozen=True)
class Encoding:
    """The encoding of images before training, in batches of the largest."""

    tower: WeightlessTower
    row: Encoded
    """The row with the most image tokens, with pixels."""
    num_rows: int = NUM_ROWS
    """Rows of the run: no batch holds more images than there are."""

    @cached_property
    def batch(self) -> dict[str, Tensor]:
        """The images of the row as often as the tower is given them at once."""
        images = image_tensors(self.row.tensors, self.row.labels.shape[1])
        times = max(1, min(self.num_rows, NUMBERS_AT_ONCE // Pixels("", images, 0).num_numbers))
        return {key: join_images(key, [images] * times) for key in images}

    def log(self, hidden: Hidden) -> Log:
        """Return what it allocates: phase `load`, then `encoding`."""
        recorder, model, batch = Recorder(hidden), self.tower.model, self.batch  # joined in main memory
        recorder.log.begin("load")
        load_checkpoint(model, recorder)
        add_residents(model, self.tower.plan, recorder)
        recorder.log.events += [EMPTY_CACHE, RESET_PEAK]
        with as_on_device(self.tower.plan), recorder:
            recorder.log.begin("encoding")
            for _ in range(NUM_BATCHES):
                recorder.kind = INPUTS
                inputs = _copied(batch)
                recorder.kind = ACTIVATIONS
                encode_images(model, inputs)
                recorder.log.num_rows += 1
                recorder.log.num_batches += 1
        recorder.stop()
        return recorder.log


def rows_in_training(rows: Sequence, plan: RunPlan) -> tuple[Sequence, WeightlessTower | None]:
    """Return rows as training has them, and the tower that is not there, where the plan caches features."""
    if not plan.cache_features:
        return rows, None
    tower = WeightlessTower(plan)
    return _ServedRows(rows, tower), tower


class _ServedRows(Sequence):
    """Rows that are encoded with pixels, as training has them."""

    def __init__(self, rows: Sequence, tower: WeightlessTower) -> None:
        self.rows, self.tower = rows, tower

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Encoded:
        return self.tower.served(self.rows[index])


def _copied(images: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return images as they lie on the device."""
    return {key: value.clone() for key, value in images.items()}
