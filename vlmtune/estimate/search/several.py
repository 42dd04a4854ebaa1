"""What several cards like one do for a run: whether one holds it, whether all do, with the layers shared or whole."""

from dataclasses import dataclass

from vlmtune.config.values import Values
from vlmtune.errors import VlmtuneError
from vlmtune.estimate.report import MemoryReport
from vlmtune.estimate.scenario import Scenario
from vlmtune.levers.gpus.number import KEY as NUM_GPUS
from vlmtune.levers.gpus.shard import KEY as SHARD
from vlmtune.units import GIB, rate


@dataclass(frozen=True)
class OnGpus:
    """The run on so many cards."""

    num_gpus: int
    shared: bool
    """Whether each keeps a share of the layers."""
    report: MemoryReport

    @property
    def in_words(self) -> str:
        """Return what each card gives, NCCL's part included, and how fast they are together."""
        report = self.report
        cards = f"{self.num_gpus} GPU{'s' * (self.num_gpus > 1)}{', layers shared' * self.shared}"
        needed, budget = report.peak_reserved_bytes + report.beside_bytes, report.budget_bytes
        pace = f", {rate(report.time.rows_per_s)} rows a second" if report.time else ""
        verdict = "fits" if report.fits else "does not fit"
        return f"{cards}: {verdict}, {needed / GIB:.2f} of {budget / GIB:.2f} GiB a card{pace}"


def on_gpus(scenario: Scenario, num_gpus: int) -> list[OnGpus]:
    """Return the run on one card, and on all of them with whole and with shared layers; what is refused is left out."""
    found = []
    for number, shard in ((1, "never"), (num_gpus, "never"), (num_gpus, "always")):
        values: Values = {NUM_GPUS: number, SHARD: shard}
        try:
            found.append(OnGpus(number, shard == "always", scenario.with_values(values).estimate(fast=True)))
        except VlmtuneError:
            continue
    return found
