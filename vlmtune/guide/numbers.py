"""The numbers of `vlmtune guide`: what a model takes on a card, what each knob and lever is worth, which models fit.

Everything is the fast estimate of the same preset with other `--set` words, so each number has a command that gives it.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vlmtune import levers
from vlmtune.catalog import catalog, find_entry
from vlmtune.catalog.stored import IMAGE_SIZES_PX, stored
from vlmtune.config.load import preset_config
from vlmtune.config.values import Values, words_of
from vlmtune.errors import given_as
from vlmtune.estimate.report import MemoryReport
from vlmtune.estimate.scenario import Scenario
from vlmtune.estimate.search.explain import priced
from vlmtune.estimate.search.fit import MARGIN, fit_card
from vlmtune.guide.report import Advice, CardSpeed, FittingModel, Guide, Named, Point, PricedLever
from vlmtune.hardware.cards import Target, budget_bytes, find_card, sizes
from vlmtune.hub.source import open_model
from vlmtune.levers.head import KEY as HEAD
from vlmtune.levers.image_size import KEY as IMAGE_SIZE
from vlmtune.levers.lora.rank import rank_of
from vlmtune.levers.method import KEY as METHOD
from vlmtune.levers.text_length import LENGTH

NAMED = (
    "Qwen/Qwen-VL-Chat",
    "llava-hf/llava-1.5-7b-hf",
    "Salesforce/instructblip-vicuna-7b",
    "llava-hf/llava-1.5-13b-hf",
)
"""The models that the founding guide recommended for small cards."""
CARDS = ("a100-80gb", "rtx-4090", "rtx-3060-12gb", "rtx-4060")
"""The cards whose speed that guide compared."""
RANKS = (4, 8, 16, 32, 64)
LENGTHS_TOKENS = (256, 512, 1024, 2048)
MODELS_SHOWN = 8
FLOAT32_BYTES = 4
KINDS = {
    "base weights": ("weights:",),
    "adapters": ("adapters:",),
    "gradients and optimizer": ("gradients", "optimizer"),
    "activations": ("saved activations", "recomputation"),
    "logits and loss": ("logits and loss",),
    "unpacked weights": ("dequantised weights",),
}
"""Rows of the table of parts, each with how the parts of an estimate that it sums begin."""

Say = Callable[[str], None]


def make_guide(model: str, preset: str, target: Target, say: Say) -> Guide:
    """Return the guide for a model on a card; `say` is told what is simulated next.

    Raises:
        VlmtuneError: no such model, or one that cannot be tuned.
    """
    scenario = _scenario(model, preset, target, say)
    base = scenario.estimate(fast=True)
    methods = {method: _report(scenario, {METHOD: method}) for method in ("lora", "qlora")}
    choices = _choices(preset, target)
    return Guide(
        model=scenario.config.model.name,
        gpu=target.card.key,
        gpu_name=target.card.name,
        preset=preset,
        budget_bytes=target.budget_bytes,
        base=base,
        methods=methods,
        parts={method: _parts(report) for method, report in methods.items()},
        ranks=tuple(_point(scenario, rank, rank_of(scenario.config, rank), base) for rank in RANKS),
        lengths=tuple(_point(scenario, length, {LENGTH: length}, base) for length in LENGTHS_TOKENS),
        images=_images(scenario, base),
        savings=_savings(scenario, base),
        spendings=_spendings(scenario, base),
        choices=choices[:MODELS_SHOWN],
        num_fitting=len(choices),
        named=tuple(_named(name, preset, target, say) for name in NAMED),
        advice=_advice(scenario, base, say),
        speeds=_speeds(scenario, say),
    )


def _scenario(model: str, preset: str, target: Target, say: Say) -> Scenario:
    """Return a model at a preset; rows are the largest that it allows."""

    def tell(values: Values) -> None:
        say(f"{model}: {' '.join(words_of(values)) or f'preset {preset}'}")

    with given_as("model.name", "--model"):
        source = open_model(model, None, Path(), offline_catalog=True)
    entry = find_entry(model)
    return Scenario(preset_config(entry.model_id if entry else model, preset), source, target, tell=tell)


def _report(scenario: Scenario, values: Values) -> MemoryReport:
    return scenario.with_values(values).estimate(fast=True)


def _point(scenario: Scenario, value: int, values: Values, base: MemoryReport) -> Point:
    """Return the preset with one knob at this value."""
    report = _report(scenario, values)
    return Point(
        value=value,
        words=words_of(values),
        adapter_bytes=_sum_of(report, ("adapters:",)),
        tokens=report.tokens["total"],
        peak_bytes=report.peak_reserved_bytes,
        change_bytes=report.peak_reserved_bytes - base.peak_reserved_bytes,
        fits=report.fits,
    )


def _images(scenario: Scenario, base: MemoryReport) -> tuple[Point, ...]:
    if scenario.facts.fixed_images:
        return ()
    return tuple(_point(scenario, side_px, {IMAGE_SIZE: side_px}, base) for side_px in IMAGE_SIZES_PX)


def _sum_of(report: MemoryReport, starts: tuple[str, ...]) -> int:
    return sum(share.bytes for share in report.breakdown if share.name.startswith(starts))


def _parts(report: MemoryReport) -> dict[str, int]:
    """Return the peak by kind; what is left is small things and memory reserved but free."""
    parts = {name: _sum_of(report, starts) for name, starts in KINDS.items()}
    return parts | {"other": report.peak_reserved_bytes - sum(parts.values())}


def _savings(scenario: Scenario, base: MemoryReport) -> tuple[PricedLever, ...]:
    """Return each saving that applies as strong as it gets, in the order in which they are given up."""
    facts, tokens = scenario.facts, base.tokens["text"]
    found = []
    for _, saving in levers.savings():
        for values in saving.steps(scenario.config, facts, tokens)[-1:]:
            found.append(PricedLever(priced(values, base, _report(scenario, values)), saving.reason))
    return tuple(found)


def _spendings(scenario: Scenario, base: MemoryReport) -> tuple[PricedLever, ...]:
    """Return what takes memory and gives speed or exactness for it, the dearest first."""
    changes = levers.more_memory(scenario.config, scenario.facts)
    found = [priced(values, base, _report(scenario, values)) for values in changes]
    return tuple(PricedLever(one, None) for one in sorted(found, key=lambda one: one.saved_bytes))


def _choices(preset: str, target: Target) -> list[FittingModel]:
    """Return the models whose stored estimate at the preset fits, the largest first."""
    found = []
    for entry in sorted(catalog(), key=lambda entry: -entry.num_parameters):
        peak = stored(entry.model_id).peaks.get(preset)
        if peak and peak.most_bytes <= target.budget_bytes:
            known = (entry.model_id, entry.num_parameters, entry.licence)
            found.append(FittingModel(*known, peak.image_tokens, peak.most_bytes))
    return found


def _named(model: str, preset: str, target: Target, say: Say) -> Named:
    """Return what one of the founding guide's models takes, and what would make it fit."""
    scenario = _scenario(model, preset, target, say)
    report = scenario.estimate(fast=True)
    fit = None if report.fits else fit_card(scenario)
    words, least = (fit.words, fit.report.peak_reserved_bytes) if fit else ((), report.peak_reserved_bytes)
    headless = budget_bytes(target.card, "headless")
    entry = find_entry(model)
    return Named(
        model=model,
        parameters=entry.num_parameters,
        download_bytes=entry.download_bytes,
        peak_bytes=report.peak_reserved_bytes,
        fits=report.fits,
        words=words,
        least_bytes=least,
        fits_so=fit.fits if fit else True,
        fits_headless=_holds(headless, least),
        card_size=next((size for size in sizes() if _holds(budget_bytes(find_card(size), "linux"), least)), None),
    )


def _speeds(scenario: Scenario, say: Say) -> tuple[CardSpeed, ...]:
    """Return how fast cards are predicted to be, whether the run fits them or not."""
    rows_per_s = {}
    for key in CARDS:
        say(f"{scenario.config.model.name} on {key}")
        target = replace(scenario.target, card=find_card(key))
        if time := replace(scenario, target=target).estimate(fast=True).time:
            rows_per_s[key] = time.rows_per_s
    slowest = min(rows_per_s.values(), default=1.0)
    fastest_first = sorted(rows_per_s.items(), key=lambda one: -one[1])
    return tuple(CardSpeed(key, find_card(key).name, speed, speed / slowest) for key, speed in fastest_first)


def _holds(budget: int, needed: int) -> bool:
    return needed <= budget * (1 - MARGIN)


def _advice(scenario: Scenario, base: MemoryReport, say: Say) -> Advice:
    packed = _report(scenario, {METHOD: "qlora"})
    vocabulary = scenario.facts.vocabulary
    named = _scenario(NAMED[0], scenario.config.preset, scenario.target, say)
    with_head = _report(named, {METHOD: "qlora", HEAD: True})
    return Advice(
        upcast_bytes=sum(
            share.bytes
            for share in packed.breakdown
            if share.name.startswith("weights:") and share.name.endswith(("bfloat16", "float16"))
        ),
        logits_bytes=base.tokens["total"] * vocabulary * FLOAT32_BYTES,
        vocabulary=vocabulary,
        named_head_saved_bytes=_report(named, {METHOD: "qlora"}).peak_reserved_bytes - with_head.peak_reserved_bytes,
    )
