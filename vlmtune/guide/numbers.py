"""The numbers of `vlmtune guide`: what a model takes on a card, what each knob and lever is worth, which models fit.

Everything is the fast estimate of the same preset with other `--set` words, so each number has a command that gives it.
"""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from vlmtune.catalog import catalog, find_entry
from vlmtune.catalog.stored import IMAGE_SIZES_PX, stored
from vlmtune.config.load import LoadedConfig, preset_config
from vlmtune.estimate.report import MemoryReport
from vlmtune.estimate.run import estimate_largest
from vlmtune.estimate.search.explain import Lever
from vlmtune.estimate.search.fit import MARGIN, fit_card
from vlmtune.families.base import Json
from vlmtune.guide.report import Advice, FittingModel, Guide, Named, Point, PricedLever
from vlmtune.hardware.cards import Target, budget_bytes, find_card, sizes
from vlmtune.hub.source import open_model
from vlmtune.levers.base import SAVINGS, Values, model_facts, spendings, words_of

NAMED = (
    "Qwen/Qwen-VL-Chat",
    "llava-hf/llava-1.5-7b-hf",
    "Salesforce/instructblip-vicuna-7b",
    "llava-hf/llava-1.5-13b-hf",
)
"""The models that the founding guide recommended for small cards."""
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
    desk = _Desk(model, preset, target, say)
    base = desk.estimate()
    methods = {method: desk.estimate({"training.method": method}) for method in ("lora", "qlora")}
    choices = _choices(preset, target)
    return Guide(
        model=desk.model,
        gpu=target.card.key,
        gpu_name=target.card.name,
        preset=preset,
        budget_bytes=target.budget_bytes,
        base=base,
        methods=methods,
        parts={method: _parts(report) for method, report in methods.items()},
        ranks=tuple(desk.point(rank, _rank_of(desk.start, rank), base) for rank in RANKS),
        lengths=tuple(desk.point(length, {"data.max_length": length}, base) for length in LENGTHS_TOKENS),
        images=_images(desk, base),
        savings=_savings(desk, base),
        spendings=_spendings(desk, base),
        choices=choices[:MODELS_SHOWN],
        num_fitting=len(choices),
        named=tuple(_named(name, preset, target, say) for name in NAMED),
        advice=_advice(desk, base, target),
    )


class _Desk:
    """A model at a preset, ready to be estimated with changes."""

    def __init__(self, model: str, preset: str, target: Target, say: Say) -> None:
        self.preset, self.target, self.say = preset, target, say
        self.source = open_model(model, None, Path(), offline_catalog=True)
        entry = find_entry(model)
        self.model = entry.model_id if entry else model
        self.start: LoadedConfig = preset_config(self.model, preset)

    def estimate(self, values: Values | None = None) -> MemoryReport:
        """Return the estimate of the preset with these values."""
        return self.with_words(words_of(values or {}), self.target, True)

    def with_words(self, words: tuple[str, ...], target: Target, fast: bool) -> MemoryReport:
        """Return the estimate of the preset with these `--set` words."""
        self.say(f"{self.model}: {' '.join(words) or f'preset {self.preset}'}")
        config = preset_config(self.model, self.preset, words).config
        return estimate_largest(config, self.source, target, fast=fast)

    def point(self, value: int, values: Values, base: MemoryReport) -> Point:
        """Return the preset with one knob at this value."""
        report = self.estimate(values)
        return Point(
            value=value,
            words=words_of(values),
            adapter_bytes=_sum_of(report, ("adapters:",)),
            tokens=report.tokens["total"],
            peak_bytes=report.peak_reserved_bytes,
            change_bytes=report.peak_reserved_bytes - base.peak_reserved_bytes,
            fits=report.fits,
        )


def _rank_of(start: LoadedConfig, rank: int) -> dict[str, Any]:
    """Return the values of a rank; alpha goes with it, so that the adapters keep their scale."""
    lora = start.config.training.lora
    return {"training.lora.rank": rank, "training.lora.alpha": max(1, rank * lora.alpha // lora.rank)}


def _images(desk: _Desk, base: MemoryReport) -> tuple[Point, ...]:
    if model_facts(desk.source, desk.model).fixed_images:
        return ()
    return tuple(desk.point(side_px, {"data.image_size": side_px}, base) for side_px in IMAGE_SIZES_PX)


def _sum_of(report: MemoryReport, starts: tuple[str, ...]) -> int:
    return sum(share.bytes for share in report.breakdown if share.name.startswith(starts))


def _parts(report: MemoryReport) -> dict[str, int]:
    """Return the peak by kind; what is left is small things and memory reserved but free."""
    parts = {name: _sum_of(report, starts) for name, starts in KINDS.items()}
    return parts | {"other": report.peak_reserved_bytes - sum(parts.values())}


def _savings(desk: _Desk, base: MemoryReport) -> tuple[PricedLever, ...]:
    """Return each saving that applies as strong as it gets, in the order in which they are given up."""
    facts, tokens = model_facts(desk.source, desk.model), base.tokens["text"]
    found = []
    for saving in SAVINGS:
        for values in saving.steps(desk.start.config, facts, tokens)[-1:]:
            found.append(PricedLever(_priced(desk, base, values), saving.reason))
    return tuple(found)


def _spendings(desk: _Desk, base: MemoryReport) -> tuple[PricedLever, ...]:
    """Return what takes memory and gives speed or exactness for it, the dearest first."""
    facts = model_facts(desk.source, desk.model)
    levers = [_priced(desk, base, values) for values in spendings(desk.start.config, facts)]
    return tuple(PricedLever(lever, None) for lever in sorted(levers, key=lambda lever: lever.saved_bytes))


def _priced(desk: _Desk, base: MemoryReport, values: Values) -> Lever:
    report = desk.estimate(values)
    saved = base.peak_reserved_bytes - report.peak_reserved_bytes
    return Lever(words_of(values), saved, report.flops_per_row / base.flops_per_row, report.fits)


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
    desk = _Desk(model, preset, target, say)
    report = desk.estimate()
    fit = None if report.fits else fit_card(desk.start.config, desk.source, target, desk.with_words)
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


def _holds(budget: int, needed: int) -> bool:
    return needed <= budget * (1 - MARGIN)


def _advice(desk: _Desk, base: MemoryReport, target: Target) -> Advice:
    packed = desk.estimate({"training.method": "qlora"})
    num_words = _vocabulary(desk.source.config)
    named = _Desk(NAMED[0], desk.preset, target, desk.say)
    method = {"training.method": "qlora"}
    with_head = named.estimate(method | {"training.quantization.quantize_head": True})
    return Advice(
        upcast_bytes=sum(
            share.bytes
            for share in packed.breakdown
            if share.name.startswith("weights:") and share.name.endswith(("bfloat16", "float16"))
        ),
        logits_bytes=base.tokens["total"] * num_words * FLOAT32_BYTES,
        vocabulary=num_words,
        named_head_saved_bytes=named.estimate(method).peak_reserved_bytes - with_head.peak_reserved_bytes,
    )


def _vocabulary(config: Json) -> int:
    """Return the entries of the vocabulary, of which many files leave out what is their class's default."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig

    if config["model_type"] not in CONFIG_MAPPING:
        return config["vocab_size"]
    return AutoConfig.for_model(**deepcopy(dict(config))).get_text_config().vocab_size
