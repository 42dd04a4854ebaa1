"""What savings are said to leave of a peak, held to simulations of tiny models, and the advice for these."""

from dataclasses import replace
from pathlib import Path

from vlmtune import levers
from vlmtune.config.load import preset_config
from vlmtune.config.values import Values, words_of
from vlmtune.errors import VlmtuneError
from vlmtune.estimate.report import MemoryReport
from vlmtune.estimate.scenario import Scenario
from vlmtune.estimate.search.candidates import Search, Settled, left_bytes
from vlmtune.estimate.search.fit import cheapest_changes
from vlmtune.hardware.cards import Target, find_card
from vlmtune.hub.source import open_model
from vlmtune.units import GIB

LAYERS = 4
WORDS = (
    "training.optim=adamw",
    "training.batch_size=4",
    "training.gradient_accumulation_steps=4",
    "hardware.gradient_checkpointing=false",
    "training.quantization.quantize_vision_tower=false",
)
RESIDENT = ("weights:", "adapters:", "optimizer")
"""What lies there at every moment: of these parts each can be compared by itself."""


class Simulator:
    """The estimates of a tiny model's run with other values, each made once, against budgets."""

    def __init__(self, folder: Path, words: tuple[str, ...]) -> None:
        loaded = preset_config(str(folder), "8gb", words)
        source = open_model(str(folder), None, Path())
        self.scenario = Scenario(loaded, source, Target(find_card("8gb"), 8 * GIB, expandable_segments=True))
        self.made: dict[tuple[str, ...], MemoryReport | None] = {}
        self.budget_bytes = 0
        self.asked: set[tuple[str, ...]] = set()

    def __call__(self, values: Values) -> MemoryReport:
        words = words_of(values)
        self.asked.add(words)
        if words not in self.made:
            try:
                self.made[words] = self.scenario.with_values(values).estimate(fast=True)
            except VlmtuneError:
                self.made[words] = None
        report = self.made[words]
        if report is None:
            raise VlmtuneError("refused")
        return replace(report, budget_bytes=self.budget_bytes, fits=report.most_bytes <= self.budget_bytes)

    def search(self, budget_bytes: int) -> Search:
        """Begin a search for what fits."""
        self.budget_bytes = budget_bytes
        before = self({})
        self.asked.clear()
        return Search(self.scenario.config, self.scenario.facts, self, too_large=before)


def test_no_saving_takes_from_a_peak_what_it_is_said_to_leave(models, monkeypatch):
    monkeypatch.setattr("vlmtune.estimate.run.SMALLEST_SHARE_BYTES", 1)  # the parts of a tiny model are all small
    simulator = Simulator(models("qwen2_5_vl", LAYERS).folder, WORDS)
    before, tried = simulator({}), 0
    for _, saving in levers.savings():
        steps = saving.steps(simulator.scenario.config, simulator.scenario.facts, before.tokens["text"])
        for values in steps[-1:]:
            try:
                after = simulator(values)
            except VlmtuneError:
                continue
            left = left_bytes(before, [Settled(saving.reason, (values,), 0, saving)])
            assert left <= after.peak_allocated_bytes + after.beside_bytes, values
            held = {share.name: share.bytes for share in after.breakdown}
            for share in before.breakdown:
                if share.name.startswith(RESIDENT) and not share.name.startswith(saving.spares):
                    assert held[share.name] >= share.bytes, (values, share.name)
            tried += 1
    assert tried >= 5


def test_the_advice_fits_and_one_step_less_of_it_does_not(models):
    simulator = Simulator(models("qwen2_5_vl", LAYERS).folder, WORDS)
    budget_bytes = int(0.9 * simulator({}).most_bytes)
    changes, search = cheapest_changes(simulator.search(budget_bytes)), simulator.search(budget_bytes)
    assert changes
    for change in changes:
        assert simulator(change.values).fits
        steps = next(settled.steps for settled in search.savings() if change.values in settled.steps)
        place = steps.index(change.values)
        assert place == 0 or not simulator(steps[place - 1]).fits
