"""A run to be estimated, and the same run with other values: what every command that simulates is made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from vlmtune.config.load import LoadedConfig
from vlmtune.config.schema import TrainingConfig
from vlmtune.config.values import Values
from vlmtune.estimate import run
from vlmtune.estimate.given_rows import GivenRows
from vlmtune.estimate.report import MemoryReport, StepTime, WithoutWorst
from vlmtune.families.facts import ModelFacts
from vlmtune.hardware.cards import Target
from vlmtune.hub.source import ModelSource
from vlmtune.plan.decide import make_plan
from vlmtune.plan.length import open_values
from vlmtune.plan.types import Device, RunPlan


def _silent(values: Values) -> None:
    return None


@dataclass(frozen=True)
class Scenario:
    """A config with its model, rows and card."""

    loaded: LoadedConfig
    source: ModelSource
    target: Target
    rows: GivenRows | None = None
    """None: the largest row that the config allows."""
    device: Device | None = None
    """What the plan is made for; None: the card of the target."""
    data_sha256: str = ""
    """Of the rows, for the plan of a run that is about to begin."""
    tell: Callable[[Values], None] = field(default=_silent, compare=False)
    """Told the changed values before each simulation."""
    values: Values = field(default_factory=dict)
    """What was changed of the config that the scenario began with."""

    def __post_init__(self) -> None:
        # Levers divide the rows of a step, so these must be known: what the config leaves open follows the rows.
        values = open_values(self.loaded.config, self.rows.num_rows if self.rows else None)
        if values:
            object.__setattr__(self, "loaded", self.loaded.with_values(values, "the number of rows"))

    @property
    def config(self) -> TrainingConfig:
        """The config as it is now."""
        return self.loaded.config

    @property
    def facts(self) -> ModelFacts:
        """What is known of the model."""
        return self.source.facts(self.config.model.name)

    def with_values(self, values: Values) -> "Scenario":
        """Return the same run with other values; rows and model are shared.

        Raises:
            VlmtuneError: the values cannot hold beside the others.
        """
        return replace(self, loaded=self.loaded.with_values(values), values=self.values | values)

    def with_budget(self, budget_bytes: int) -> "Scenario":
        """Return the same run held to another budget."""
        return replace(self, target=replace(self.target, budget_bytes=budget_bytes))

    @property
    def plan(self) -> RunPlan:
        """The plan that is estimated.

        Raises:
            VlmtuneError: the model belongs to no family, or a wish cannot be granted on the device.
        """
        card = self.target.card
        card_alone = Device(
            "cuda", card.name, card.sm >= (8, 0), card.total_bytes_linux, no_triton=self.target.no_triton
        )
        device = self.device or card_alone
        plan = make_plan(self.config, self.source, device, self.data_sha256, self.rows)
        return replace(plan, model=str(self.source.catalogued)) if self.source.catalogued else plan

    def estimate(self, *, fast: bool = False) -> MemoryReport:
        """Return what the run takes.

        Raises:
            VlmtuneError: a row is refused, as in training; or nobody can tell.
        """
        self.tell(self.values)
        if self.rows is None:
            report = run.estimate_largest(self.plan, self.source, self.target, fast=fast)
        else:
            report = run.estimate_plan(self.plan, self.source, self.rows, self.target, fast=fast)
        return replace(report, preset=self.config.preset)

    def pace(self, known: Sequence[MemoryReport]) -> StepTime | None:
        """Return what a step takes, predicted from estimates of this run that divide a step's rows otherwise."""
        return run.pace(self.plan, self.source, self.rows, self.target, known)

    def without_worst(self) -> WithoutWorst | None:
        """Return what leaving out the longest rows would save; None without rows, or where it saves nothing."""
        return run.without_worst(self.plan, self.source, self.rows, self.target) if self.rows else None
