"""The search for a config that fits, with memory by a formula: what it gives up, in which order, and what it buys."""

import dataclasses
import itertools
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmtune import levers
from vlmtune.config.load import preset_config
from vlmtune.config.schema import TrainingConfig
from vlmtune.config.values import Values, changed, value_at, words_of
from vlmtune.errors import VlmtuneError
from vlmtune.estimate.report import MemoryReport, PeakAt, Share, StepTime
from vlmtune.estimate.search.candidates import Search
from vlmtune.estimate.search.fit import MOST_CHANGES, cheapest_changes, find_fit
from vlmtune.estimate.search.spend import Ways
from vlmtune.levers.base import GivesUp
from vlmtune.levers.batch import batch_of, rows_per_step
from vlmtune.levers.recompute import RECOMPUTE, keep_all, recompute_first
from vlmtune.units import MIB

CACHING = SimpleNamespace(
    name="toy",
    not_cacheable="",
    not_packable="",
    most_pack_tokens=None,
    sees_both_ways=False,
    text="text",
    eager=(),
    tower_loops=True,
)
FACTS = {
    "num_layers": 36,
    "family": CACHING,
    "prequantised": None,
    "adapter": None,
    "layers_with_state": (),
    "caps_attention": False,
}
FACTS["config"] = {"model_type": "toy"}
MODEL = SimpleNamespace(shares_embedding=False, fixed_images=False, **FACTS)
QUALITY = ("data.max_length", "data.image_size", "training.lora.rank")
LAYERS, A_PASS_S, GRAPHS_MIB = 36, 0.01, 300


def config_with(preset: str, words=()) -> TrainingConfig:
    return preset_config("org/model", preset, list(words)).config


def needed_mib(config: TrainingConfig, billions: float = 4.0) -> float:
    return sum(parts_mib(config, billions).values())


def parts_mib(config: TrainingConfig, billions: float = 4.0) -> dict[str, float]:
    """Memory that grows with everything that a real run's grows with; a full pass of tokens and layers counts."""
    training, hardware = config.training, config.hardware
    quantised = training.method == "qlora"
    weights = billions * (520 if quantised else 2000)
    weights *= 1 - max(0, hardware.streamed_layers - 2) / LAYERS
    tower = 400 * (0.27 if quantised and training.quantization.quantize_vision_tower else 1)
    head = 600 * {False: 1, "8bit": 0.5, True: 0.27}[training.quantization.quantize_head]
    state = 2 if training.optim == "paged_adamw_8bit" or training.optim is None else 8
    adapters = (billions * 1000 * 8 if training.method == "full" else training.lora.rank * 4) * (4 + state) / 4
    rows_at_once = training.batch_size
    if training.packing is True:
        rows_at_once = training.pack_tokens / (config.data.max_length + 100)
    tokens = rows_at_once * (config.data.max_length + (config.data.image_size or 1280) ** 2 / 1024)
    kept = LAYERS if not hardware.gradient_checkpointing else LAYERS - (hardware.checkpointed_layers or LAYERS)
    started_from = 0 if hardware.offload_activations else 0.01 * (LAYERS - kept)
    return {
        "other": 200 + GRAPHS_MIB * (hardware.cuda_graphs is True),
        "weights: text 4-bit": weights,
        "weights: vision 4-bit": tower if config.data.cache_features is not True else 0,
        "weights: head bfloat16": head,
        "adapters: text": adapters,
        "saved activations": tokens * (0.6 + 0.25 * kept + started_from),
    }


def step_s(config: TrainingConfig) -> float:
    """A third more where all layers recompute, and something for each pass over the weights that is no graph."""
    training, hardware = config.training, config.hardware
    recomputing = (hardware.checkpointed_layers or LAYERS) / LAYERS if hardware.gradient_checkpointing else 0
    rows, tokens = rows_per_step(config), config.data.max_length + 100
    passes = rows / training.batch_size
    if training.packing is True:
        passes = 0 if hardware.cuda_graphs is True else rows * tokens / training.pack_tokens
    return rows * tokens * 1e-4 * (2 + recomputing) + A_PASS_S * passes


def report_of(config: TrainingConfig, budget_mib: float, billions: float = 4.0) -> MemoryReport:
    needed, budget = int(needed_mib(config, billions) * MIB), int(budget_mib * MIB)
    tokens = {"text": config.data.max_length, "image": 100, "total": config.data.max_length + 100}
    return MemoryReport(
        model="org/model",
        preset=config.preset,
        gpu="8gb",
        fits=needed <= budget,
        peak_reserved_bytes=needed,
        peak_allocated_bytes=needed,
        device_total_bytes=needed,
        budget_bytes=budget,
        breakdown=tuple(Share(name, int(mib * MIB)) for name, mib in parts_mib(config, billions).items()),
        parts={},
        peak_at=PeakAt("step 2", "mm", "lm_head"),
        phases=(),
        worst_row="largest row allowed",
        tokens=tokens,
        flops_per_row=1.0,
        fast=False,
        seconds=0.0,
        versions={},
        time=pace_of(config),
    )


def pace_of(config: TrainingConfig) -> StepTime:
    return StepTime(step_s(config), 1.0, None, None, 0.0, 0, 0.0, 0.0, False, 0.0, True)


def values_of(fit) -> Values:
    return {key: value for change in fit.changes for key, value in change.values.items()}


def estimated_within(config: TrainingConfig, budget_mib: float):
    return lambda values: report_of(changed(config, values), budget_mib)


def paced_from(config: TrainingConfig):
    return lambda values, known: pace_of(changed(config, values))


class Simulator:
    """Stands for the estimate, and counts."""

    def __init__(self, preset: str, budget_mib: float, billions: float = 4.0) -> None:
        self.preset, self.budget_mib, self.billions = preset, budget_mib, billions
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, values: Values) -> MemoryReport:
        self.asked.append(words_of(values))
        return report_of(config_with(self.preset, words_of(values)), self.budget_mib, self.billions)

    def pace(self, values: Values, known: list[MemoryReport]) -> StepTime:
        """What is predicted without counting as a simulation."""
        return pace_of(config_with(self.preset, words_of(values)))

    def fit(self, model=MODEL):
        return find_fit(config_with(self.preset), model, self, self, self.pace)


def least_mib(preset: str, billions: float = 4.0) -> float:
    """What is needed with every saving at its strongest."""
    config = config_with(preset)
    for _, saving in levers.savings():
        steps = saving.steps(config, MODEL, config.data.max_length)
        config = changed(config, steps[-1]) if steps else config
    return needed_mib(config, billions)


PACKED = ("training.packing=true", "training.pack_tokens=2048")
PRESETS = ["6gb", "8gb", "12gb", "16gb", "24gb", "48gb"]


@pytest.mark.parametrize("preset", PRESETS)
@given(room=st.floats(0, 3))
@settings(max_examples=25, deadline=None)
def test_what_is_found_fits_keeps_the_rows_of_a_step_and_nothing_of_it_can_be_taken_back(preset, room):
    least = least_mib(preset)
    budget = least + room * (needed_mib(config_with(preset)) - least)
    simulator = Simulator(preset, budget)
    fit, before = simulator.fit(), config_with(preset)
    after = config_with(preset, fit.words)
    assert fit.fits and int(needed_mib(after) * MIB) <= int(budget * MIB)
    assert rows_per_step(after) == rows_per_step(before)
    assert len(simulator.asked) == fit.tried <= 40
    most = 9 if fit.unchanged.fits else 40
    assert fit.tried <= most, "where nothing is given up few are simulated, and the others predicted"
    for change in fit.changes:
        if change.reason.startswith("memory is left"):
            continue
        others = [word for other in fit.changes if other is not change for word in other.words]
        spent = ("hardware.gradient_checkpointing", "hardware.checkpointed_layers")
        kept = [word for word in others if not word.startswith(spent)] + ["hardware.gradient_checkpointing=true"]
        try:
            without = needed_mib(config_with(preset, kept))
        except VlmtuneError:
            continue
        assert without > budget, change


@pytest.mark.parametrize("preset", PRESETS)
def test_with_room_no_quality_is_given_up_and_the_rest_buys_speed(preset):
    before = config_with(preset)
    fit = Simulator(preset, 40 * needed_mib(before)).fit()
    after = config_with(preset, fit.words)
    assert [value_at(after, key) for key in QUALITY] == [value_at(before, key) for key in QUALITY]
    assert after.hardware.gradient_checkpointing is False
    row, size = report_of(after, 1).tokens["total"], after.training.batch_size
    assert size == before.training.batch_size or size / 2 * row < 8192, "no more rows than keep a card busy"
    at_once = after.training.pack_tokens if after.training.packing is True else size * row
    assert at_once >= 8192 or after.training.gradient_accumulation_steps == 1
    assert [change.reason for change in fit.changes if not change.reason.startswith("memory is left")] == []


def test_what_layers_recompute_from_leaves_the_card_before_anything_is_given_up_and_may_come_back():
    config, key = config_with("8gb"), "hardware.offload_activations"
    needed, least = needed_mib(config), needed_mib(changed(config, {key: True}))
    fit = Simulator("8gb", (needed + least) / 2).fit()
    assert fit.fits and fit.words == (f"{key}=true",)
    wished = preset_config("org/model", "8gb", [f"{key}=true"]).config

    def estimate(values: Values) -> MemoryReport:
        return report_of(changed(wished, values), needed_mib(changed(config, recompute_first(20))))

    assert set(find_fit(wished, MODEL, estimate, estimate, paced_from(wished)).words) >= {f"{key}=false"}
    levels = RECOMPUTE.spending.levels(wished, MODEL, 100)
    assert (levels[0], levels[1], levels[-1]) == (recompute_first(None), recompute_first(35), keep_all())
    assert RECOMPUTE.spending.levels(config, MODEL, 100)[0] == recompute_first(35)


def test_memory_for_some_layers_is_found_to_within_a_twelfth():
    config = config_with("8gb")
    at_20 = needed_mib(changed(config, recompute_first(20)))
    fit = Simulator("8gb", at_20).fit()
    after = config_with("8gb", fit.words)
    assert 20 <= after.hardware.checkpointed_layers <= 23
    assert fit.tried <= 9  # as it comes, the coarsest divisions, everything kept, and the two quickest of these
    assert fit.changes[0].before == ("null",)
    number = after.hardware.checkpointed_layers + 1
    assert fit.changes[0].reason.startswith(f"memory is left: layer {number} and those after it keep")


@pytest.mark.parametrize("a_pass_s", [0.001, 0.05, 0.5])
@pytest.mark.parametrize("room", [1.05, 1.3, 2, 4])
def test_the_way_that_is_predicted_quickest_is_taken(room, a_pass_s, monkeypatch):
    """Within a tenth of all ways to divide the rows of a step and to keep layers, whatever a pass costs."""
    monkeypatch.setattr(f"{__name__}.A_PASS_S", a_pass_s)
    config = config_with("8gb")
    budget = room * needed_mib(config)
    rows, tokens = rows_per_step(config), config.data.max_length + 100
    divisions = [
        batch_of(size, rows) for size in (1, 2, 4, 8, 16, 32) if rows % size == 0 and (size / 2) * tokens < 8192
    ]
    packs = [{"training.packing": True, "training.pack_tokens": size} for size in (2048, 4096, 8192, 16_384)]
    divisions += packs
    kept = [recompute_first(number) for number in range(1, LAYERS + 1)] + [keep_all()]
    every = [changed(config, division | layers) for division in divisions for layers in kept]
    every += [changed(config, division | {"hardware.cuda_graphs": True}) for division in packs]
    best_s = min(step_s(one) for one in every if needed_mib(one) <= budget)
    fit = Simulator("8gb", budget).fit()
    assert fit.fits and fit.report.time.step_s <= 1.1 * best_s


@pytest.mark.parametrize("words", [(), PACKED])
def test_where_the_processor_is_slower_than_the_card_packs_become_graphs(words, monkeypatch):
    """Of packs that the config leaves open, and of those that it has; nothing else is bought beside them."""
    monkeypatch.setattr(f"{__name__}.A_PASS_S", 2.0)
    config = config_with("8gb", words)

    def fit(room: float):
        budget = room * needed_mib(config) + GRAPHS_MIB / 2
        estimate = estimated_within(config, budget)
        return find_fit(config, MODEL, estimate, estimate, paced_from(config))

    fits, tight = fit(2), fit(1)
    after = changed(config, values_of(fits))
    assert after.hardware.cuda_graphs is True and after.training.packing is True
    assert after.hardware.gradient_checkpointing and after.hardware.checkpointed_layers is None
    assert "slower than the card" in fits.changes[-1].reason
    assert changed(config, values_of(tight)).hardware.cuda_graphs == "auto"


def test_graphs_that_do_not_fit_say_nothing_of_packs_without_them(monkeypatch):
    monkeypatch.setattr(f"{__name__}.GRAPHS_MIB", 10**6)
    monkeypatch.setattr(f"{__name__}.A_PASS_S", 2.0)
    config = config_with("8gb")
    found = []
    for words in ((), ("hardware.cuda_graphs=false",)):
        begun = config_with("8gb", words)
        estimate = estimated_within(begun, 9 * needed_mib(config))
        found.append(values_of(find_fit(begun, MODEL, estimate, estimate, paced_from(begun))))
    assert found[0] == found[1] and found[0]["training.pack_tokens"] == 16_384


@pytest.mark.parametrize("words", [(), PACKED, (*PACKED, "training.gradient_accumulation_steps=5")])
def test_of_graphs_a_step_is_predicted_without_simulating_any_or_buying_more(words):
    config = config_with("8gb", words)
    search, pace = Search(config, MODEL, estimated_within(config, 99 * needed_mib(config))), paced_from(config)
    ways = Ways(search, [], pace)
    alone = [way for way in ways.every if way.alone]
    assert alone
    for way in alone:
        assert ways.predicted(way) == pace(way.values, []).step_s
    assert not any("hardware.cuda_graphs=true" in changes for changes in search.reports)


@pytest.mark.parametrize(
    "wish", ["hardware.cuda_graphs=false", "training.lora.dropout=0.1", "hardware.varlen_attention=false"]
)
def test_what_no_card_records_is_no_graph(wish, monkeypatch):
    monkeypatch.setattr(f"{__name__}.A_PASS_S", 2.0)
    config = config_with("8gb", (wish,))
    estimate = estimated_within(config, 4 * needed_mib(config))
    fit = find_fit(config, MODEL, estimate, estimate, paced_from(config))
    assert fit.fits and changed(config, values_of(fit)).hardware.cuda_graphs is not True


def test_on_a_card_whose_rates_nobody_knows_more_rows_come_after_kept_activations():
    def estimate(values: Values) -> MemoryReport:
        config = config_with("8gb", words_of(values))
        recomputing = config.hardware.gradient_checkpointing
        report = report_of(config, 60 * needed_mib(config_with("8gb")))
        return dataclasses.replace(report, time=None, flops_per_row=4 / 3 if recomputing else 1)

    after = config_with(
        "8gb", find_fit(config_with("8gb"), MODEL, estimate, estimate, lambda values, known: None).words
    )
    assert not after.hardware.gradient_checkpointing
    assert after.training.packing is True or after.training.batch_size > 1


def test_what_costs_no_quality_goes_first():
    """Just below what the preset needs, one change suffices; the preset 16gb has the most to give."""
    before = config_with("16gb")
    budget, given_up, offload = needed_mib(before) - 1, [], "hardware.offload_activations"
    for _ in range(6):
        after = config_with("16gb", Simulator("16gb", budget).fit().words)
        given_up.append(
            [key for key in (offload, "training.batch_size", *QUALITY) if value_at(after, key) != value_at(before, key)]
        )
        budget -= 500
    assert given_up[0] == [offload] and ["training.batch_size"] in given_up
    for fewer, more in itertools.pairwise(given_up):
        assert set(fewer) <= set(more) or "training.batch_size" in more


def test_the_stated_order_of_quality():
    """Rank down to 4, then texts to 256, then images, and texts below that last."""
    preset, seen = "24gb", []
    budget, least = needed_mib(config_with(preset)), least_mib(preset)
    while budget > least:
        after = config_with(preset, Simulator(preset, budget).fit().words)
        seen.append([value_at(after, key) for key in QUALITY])
        budget -= 40
    texts, images, ranks = zip(*seen, strict=True)
    assert min(texts) < 256 and min(images) < 300 and min(ranks) == 4, "every lever was needed in the end"
    assert all(rank < 32 for text, _, rank in seen if text < 1536), "texts are not cut far before the rank is lowered"
    assert all(text <= 512 for text, image, _ in seen if image < 896), "images are not shrunk far before texts are cut"
    assert all(image < 336 for text, image, _ in seen if text < 256), "the shortest texts are the last resort"
    assert ranks[0] == 32 and ranks.index(16) < texts.index(next(text for text in texts if text < 2048))


def test_alpha_keeps_the_scale_of_the_adapters():
    config = config_with("24gb")
    for _, saving in levers.savings():
        for values in saving.steps(config, MODEL, 2048):
            if "training.lora.rank" in values:
                assert values["training.lora.alpha"] == 2 * values["training.lora.rank"]


def test_nothing_fits():
    fit = Simulator("8gb", 600).fit()
    assert not fit.fits and fit.report.peak_reserved_bytes > 600 * MIB
    after = config_with("8gb", fit.words)
    assert (after.data.max_length, after.data.image_size, after.training.lora.rank) == (128, 224, 4)
    assert after.training.quantization.quantize_head and after.hardware.streamed_layers == LAYERS


def test_as_few_layers_as_fit_lie_in_main_memory_before_anything_is_rounded():
    before = ("hardware.offload_activations=true", "data.cache_features=true")
    config = config_with("8gb", before)
    for number in (3, 20, 36):
        at_number = needed_mib(changed(config, {"hardware.streamed_layers": number}))
        fit = Simulator("8gb", at_number).fit()
        streamed = (f"hardware.streamed_layers={number}",)
        assert fit.fits and fit.words == (*before, *streamed)
        assert fit.tried <= 14

        def estimate(values, budget=at_number):
            return report_of(changed(config, values), budget)

        assert cheapest_changes(Search(config, MODEL, estimate, report_of(config, at_number)))[0].words == streamed


def test_layers_that_become_4_bit_may_then_lie_in_main_memory():
    config = config_with("24gb", ("training.method=lora",))
    less = {"training.batch_size": 1, "hardware.offload_activations": True}
    packed = changed(config, {"training.method": "qlora", **less})

    def estimate(values):
        return report_of(config_with("24gb", ("training.method=lora", *words_of(values))), needed_mib(packed) - 900)

    fit = find_fit(config, MODEL, estimate, estimate, paced_from(config))
    assert fit.fits and "training.method=qlora" in fit.words
    assert any(word.startswith("hardware.streamed_layers=") for word in fit.words)
    after = config_with("24gb", fit.words)
    assert not after.training.quantization.quantize_vision_tower and after.training.lora.rank == 32


def test_a_lever_that_the_model_does_not_have_is_not_pulled():
    fixed = SimpleNamespace(shares_embedding=True, fixed_images=True, **FACTS)
    fit = Simulator("8gb", 700).fit(fixed)
    words = " ".join(fit.words)
    assert "image_size" not in words and "quantize_head" not in words and "max_length=128" in words


@pytest.mark.parametrize(("short_mib", "wish", "bits"), [(250, "8bit", 8), (400, "true", 4)])
def test_the_head_is_rounded_to_8_bits_before_it_is_to_4(short_mib, wish, bits):
    config = config_with("8gb")
    for _, saving in levers.savings():
        if saving.gives_up < GivesUp.HEAD_ROUNDING and (steps := saving.steps(config, MODEL, config.data.max_length)):
            config = changed(config, steps[-1])
    fit = Simulator("8gb", needed_mib(config) - short_mib).fit()
    assert fit.fits and f"training.quantization.quantize_head={wish}" in fit.words
    reason = next(change.reason for change in fit.changes if "training.quantization.quantize_head" in change.values)
    assert reason == f"the frozen output head in {bits} bits: rounded"


def test_a_head_that_takes_more_when_unpacked_is_left_alone():
    class Unpacked(Simulator):
        def __call__(self, values):
            report = super().__call__(values)
            if values.get("training.quantization.quantize_head") is not True:
                return report
            peak = report.peak_reserved_bytes + 700 * MIB
            return dataclasses.replace(report, peak_reserved_bytes=peak, fits=peak <= report.budget_bytes)

    for budget, fits in ((700, False), (needed_mib(config_with("8gb")) - 30, True), (least_mib("8gb") + 600, True)):
        fit = Unpacked("8gb", budget).fit()
        assert fit.fits == fits and "training.quantization.quantize_head=true" not in fit.words


def test_a_fast_search_that_was_wrong_is_done_again_in_full():
    config = config_with("8gb")
    full = Simulator("8gb", needed_mib(config) - 30)
    fast = Simulator("8gb", needed_mib(config) + 30)
    fit = find_fit(config, MODEL, full, fast, full.pace)
    assert fit.fits and needed_mib(config_with("8gb", fit.words)) <= full.budget_mib
    agreeing = Simulator("8gb", 0.9 * needed_mib(config))
    find_fit(config, MODEL, agreeing, Simulator("8gb", agreeing.budget_mib), full.pace)
    assert len(agreeing.asked) == 1, "the full estimate is made once, of what the fast one found"


def test_a_config_that_fits_gives_nothing_up_for_the_margin_of_the_fast_search():
    config = config_with("8gb")
    full = Simulator("8gb", 1.001 * needed_mib(config))
    fit = find_fit(config, MODEL, full, Simulator("8gb", 0.991 * needed_mib(config)), full.pace)
    assert fit.fits and fit.words == ()


def test_a_candidate_that_is_refused_is_no_candidate():
    config = config_with("24gb")
    budget = least_mib("24gb") + 900

    def refuses(values):
        made = config_with("24gb", words_of(values))
        if made.data.max_length < 800:
            raise VlmtuneError("a question alone is longer")
        return report_of(made, budget)

    fit = find_fit(config, MODEL, refuses, refuses, paced_from(config))
    after = config_with("24gb", fit.words)
    assert fit.fits and 800 <= after.data.max_length < 2048 and after.data.image_size < 1024


def test_a_division_that_is_refused_is_no_way_to_go():
    config = config_with("8gb")
    budget = 40 * needed_mib(config)

    def refused(values: Values) -> TrainingConfig:
        made = config_with("8gb", words_of(values))
        if made.training.packing is True or made.training.batch_size > 4:
            raise VlmtuneError("not so many at once")
        return made

    def estimate(values: Values) -> MemoryReport:
        return report_of(refused(values), budget)

    fit = find_fit(config, MODEL, estimate, estimate, lambda values, known: pace_of(refused(values)))
    assert fit.fits and config_with("8gb", fit.words).training.batch_size == 4


def test_a_config_that_is_refused_stops_the_search():
    def refuses(values):
        raise VlmtuneError("no tokenizer")

    with pytest.raises(VlmtuneError, match="no tokenizer"):
        find_fit(config_with("8gb"), MODEL, refuses, refuses, paced_from(config_with("8gb")))


def test_the_cheapest_changes_each_make_it_fit():
    config = config_with("16gb", ["training.gradient_accumulation_steps=8"])
    simulator = Simulator("16gb", needed_mib(config) - 50)
    changes = cheapest_changes(Search(config, None, simulator, report_of(config, simulator.budget_mib)))
    assert 2 <= len(changes) <= 3
    assert changes[0].words == ("hardware.offload_activations=true",)
    assert changes[1].words == ("training.batch_size=1", "training.gradient_accumulation_steps=16")
    assert changes[1].before == ("2", "8")
    for change in changes:
        assert needed_mib(config_with("16gb", change.words)) <= simulator.budget_mib
    keys = [word.split("=")[0] for change in changes for word in change.words]
    assert len(keys) == len(set(keys)), "three different ways, not three sizes of one"


@pytest.mark.parametrize("preset", PRESETS)
@given(short=st.floats(0.01, 0.99))
@settings(max_examples=5, deadline=None)
def test_the_cheapest_changes_are_those_of_all_that_are_tried_by_few_simulations(preset, short):
    config = config_with(preset)
    budget = needed_mib(config) - short * (needed_mib(config) - least_mib(preset))
    simulator, before = Simulator(preset, budget), report_of(config, budget)
    every, trying = list[Values](), Search(config, MODEL, Simulator(preset, budget), before)
    for settled in trying.savings():
        reports = ((values, trying.report(values)) for values in settled.steps)
        fitting = next((values for values, report in reports if report and report.fits), None)
        if fitting and not any(fitting.keys() & other.keys() for other in every):
            every.append(fitting)
    changes = cheapest_changes(Search(config, MODEL, simulator, before))
    assert len(simulator.asked) <= (16 if every else 20)
    for change in changes:
        assert change.words in simulator.asked, "nothing is advised that was not simulated"
    if every:
        assert [change.values for change in changes] == every[:MOST_CHANGES]


def test_what_cannot_suffice_is_not_simulated_and_one_line_tells_how_many_layers():
    config = config_with("8gb")
    budget = needed_mib(changed(config, {"hardware.streamed_layers": 25})) + 5
    simulator = Simulator("8gb", budget)
    changes = cheapest_changes(Search(config, MODEL, simulator, report_of(config, budget)))
    assert [change.words for change in changes] == [("hardware.streamed_layers=25",)]
    assert simulator.asked == [("hardware.streamed_layers=36",), ("hardware.streamed_layers=25",)]


def test_of_two_ways_to_change_the_same_key_the_first_is_named():
    more = ("training.method=full", "training.batch_size=1", "training.gradient_accumulation_steps=16")
    config = config_with("24gb", more)

    def estimate(values):
        return report_of(config_with("24gb", (*more, *words_of(values))), 20_000)

    changes = cheapest_changes(Search(config, None, estimate, report_of(config, 20_000)))
    assert [change.words for change in changes] == [("training.method=lora",)]


def test_where_no_single_change_suffices_they_are_combined():
    config = config_with("16gb")
    budget = least_mib("16gb") + 60
    changes = cheapest_changes(Search(config, MODEL, Simulator("16gb", budget), report_of(config, budget)))
    assert len(changes) == 1 and len(changes[0].words) >= 4
    assert needed_mib(config_with("16gb", changes[0].words)) <= budget
    assert cheapest_changes(Search(config, None, Simulator("16gb", 100), report_of(config, 100))) == []


def test_every_step_of_every_lever_is_a_valid_config():
    tried = 0
    for preset, method in itertools.product(PRESETS, ("qlora", "lora", "full")):
        config = config_with(preset, (f"training.method={method}", "training.optim=adamw"))
        for _, saving in levers.savings():
            for values in saving.steps(config, MODEL, config.data.max_length):
                assert config_with(preset, (*words_of({"training.method": method}), *words_of(values)))
                tried += 1
        for values in levers.more_memory(config, MODEL):
            assert changed(config, values)
            tried += 1
    assert tried > 200


def test_full_tuning_that_does_not_fit_becomes_adapters():
    config = config_with("24gb", ("training.method=full", "training.freeze_vision_tower=false"))

    def estimate(values):
        more = ("training.method=full", "training.freeze_vision_tower=false", *words_of(values))
        return report_of(config_with("24gb", more), 20_000)

    fit = find_fit(config, MODEL, estimate, estimate, paced_from(config))
    assert fit.fits and "training.method=lora" in fit.words and "training.freeze_vision_tower=true" in fit.words
