"""The rows of a run that is estimated: rendered and tokenised once, whatever the number of plans looked at."""

import json
from typing import TYPE_CHECKING

from vlmtune.data.run_data import MeasuredRows
from vlmtune.hub.source import ModelSource
from vlmtune.plan.types import RunPlan

if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from vlmtune.data.measure.lengths import Lengths


class GivenRows:
    """Rows with what every plan of one model shares: their measures, and a processor for each setting of it."""

    def __init__(self, rows: MeasuredRows) -> None:
        self.samples = rows.samples
        self._rows = rows
        self._processors: dict[str, ProcessorMixin] = {}

    def processor(self, plan: RunPlan) -> "ProcessorMixin":
        """Return the model's processor as the plan sets it."""
        from vlmtune.models.processor import load_processor

        setting = json.dumps(plan.image_overrides, sort_keys=True, default=str)
        if setting not in self._processors:
            self._processors[setting] = load_processor(plan)
        return self._processors[setting]

    def lengths(self, plan: RunPlan, source: ModelSource) -> "Lengths":
        """Return the tokens of each row under a plan.

        Raises:
            VlmtuneError: rows that the model cannot take, all of them named, or image tokens counted wrongly.
        """
        from vlmtune.models.build import family_of

        return self._rows.lengths(self.processor(plan), family_of(plan), plan, source)
