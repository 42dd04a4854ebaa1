"""What is simulated for one estimate: a plan, the batches of some of its steps, and what is done beside them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlmtune.hub.source import ModelSource
from vlmtune.plan.types import RunPlan

if TYPE_CHECKING:
    from torch import Tensor

    from vlmtune.data.encode import Encoded
    from vlmtune.estimate.answers import HeldOutRows
    from vlmtune.estimate.features import Encoding
    from vlmtune.estimate.simulate.simulation import Batch, Steps
    from vlmtune.estimate.timing.predict import Sizes


@dataclass(frozen=True)
class Work:
    """What is simulated."""

    plan: RunPlan
    source: ModelSource
    steps: "Steps"
    sizes: "Sizes"
    """Of the batches of these steps."""
    longest: "Encoded"
    evaluated: "Sequence[Encoded]"
    """Held-out rows whose losses need most, the longest first."""
    fast: bool
    encoding: "Encoding | None" = None
    """What is done before training; None where the model has its tower."""
    held_out: "HeldOutRows | None" = None
    """What is answered at each evaluation in training."""

    @property
    def form(self) -> str | None:
        """How batches carry features; None where they carry pixels."""
        return self.encoding.tower.form if self.encoding else None

    @property
    def evaluated_batches(self) -> "list[Batch]":
        """Each of these rows on its own, as evaluations take them."""
        from vlmtune.data.collate import WHERE, collate

        alone = [collate([row], 0) for row in self.evaluated]
        return [{key: value for key, value in batch.items() if key != WHERE} for batch in alone]

    def worst_at(self, phase: str) -> "Encoded":
        """Return the row that a phase needs most for."""
        from vlmtune.estimate.answers import HELD_OUT
        from vlmtune.estimate.simulate.simulation import EVALUATION

        if phase == HELD_OUT and self.held_out:
            return self.held_out.longest
        return self.evaluated[0] if phase == EVALUATION else self.longest

    @property
    def batches(self) -> "list[Batch]":
        """Those of all steps."""
        return [batch for step in self.steps for batch in step]

    def digest(self) -> list:
        """Return what of the batches decides the memory: sizes of tensors, and the values of whole numbers."""
        batches = self.batches + self.evaluated_batches + ([self.encoding.batch] if self.encoding else [])
        batches += [self.held_out.longest.tensors] if self.held_out else []
        asked = self.held_out and (self.held_out.max_new_tokens, self.held_out.num_rows)
        sizes = ([(key, value.shape, values_of(value)) for key, value in batch.items()] for batch in batches)
        return [self.fast, asked, [row.where for row in (self.longest, *self.evaluated)], *sizes]


def values_of(tensor: "Tensor") -> str | None:
    """Return the digest of whole numbers, by which models decide; None of a tensor of others."""
    return None if tensor.is_floating_point() else hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
