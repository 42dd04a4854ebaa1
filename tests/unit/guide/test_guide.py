"""The guide, with memory by a formula in place of the simulation: which numbers it takes from where, what it says."""

import dataclasses
import json
import re

import pytest

from vlmtune import levers
from vlmtune.catalog import find_entry
from vlmtune.config.load import preset_config
from vlmtune.estimate.report import MemoryReport, PeakAt, Phase, Share, StepTime
from vlmtune.estimate.scenario import Scenario
from vlmtune.guide import numbers as guide_module
from vlmtune.guide.numbers import NAMED, RANKS, make_guide
from vlmtune.guide.text import guide_markdown
from vlmtune.hardware.cards import Target, budget_bytes, find_card
from vlmtune.units import GIB, MIB

QWEN, LLAVA = "Qwen/Qwen3-VL-4B-Instruct", "llava-hf/llava-1.5-7b-hf"
VERSIONS = {"torch": "2.15.0", "transformers": "5.23.0", "peft": "0.21.2", "bitsandbytes": "0.50.2"}


def weights_mib(config) -> float:
    """Weights on the card by billion parameters, in a model of 36 layers."""
    share = 1 - max(0, config.hardware.streamed_layers - 2) / 36
    return 540 * share if config.training.method == "qlora" else 1900


def fake_estimate(config, source, target, *, fast=False) -> MemoryReport:
    training = config.training
    billions = find_entry(source.location).num_parameters / 1e9
    image = 576 if "llava" in source.location else (config.data.image_size or 1024) ** 2 // 1024
    tokens = config.data.max_length + image
    shares = {
        "weights: text 4-bit": int(billions * weights_mib(config)) * MIB,
        "weights: text bfloat16": 700 * MIB,
        "weights: text float32": 3 * MIB,
        "weights: vision 4-bit": 0 if config.data.cache_features is True else 90 * MIB,
        "adapters: text": training.lora.rank * 8 * MIB,
        "gradients": training.lora.rank * 4 * MIB,
        "optimizer": 5 * MIB * (4 if training.optim == "adamw" else 1),
        "saved activations": tokens * training.batch_size * MIB // (8 if config.hardware.offload_activations else 4),
        "logits and loss": 40 * MIB,
        "dequantised weights": 900 * MIB if training.quantization.quantize_head is True else 0,
        "other": 7 * MIB,
        "reserved but free (fragmentation)": 30 * MIB,
        "CUDA context": target.card.context_bytes,
    }
    total = sum(shares.values())
    reserved = total - target.card.context_bytes
    return MemoryReport(
        model=config.model.name,
        preset=config.preset,
        gpu=target.card.key,
        fits=reserved <= target.budget_bytes,
        peak_reserved_bytes=reserved,
        peak_allocated_bytes=reserved,
        device_total_bytes=total,
        budget_bytes=target.budget_bytes,
        breakdown=tuple(Share(*share) for share in shares.items()),
        parts={},
        peak_at=PeakAt("step 2", "mm", "lm_head"),
        phases=(Phase("load", GIB, GIB),),
        worst_row="largest row allowed",
        tokens={"text": config.data.max_length, "image": image, "total": tokens},
        flops_per_row=float(tokens * (1 if config.hardware.gradient_checkpointing else 0.75)),
        fast=fast,
        seconds=1.0,
        versions=VERSIONS,
        time=StepTime(1.0, target.card.bf16_tflops / 10, None, None, 1.0, 1, 4.0, 2e-5, False, 0.0, True),
    )


def by_formula(scenario, *, fast=False) -> MemoryReport:
    scenario.tell(scenario.values)
    return fake_estimate(scenario.config, scenario.source, scenario.target, fast=fast)


@pytest.fixture(autouse=True)
def _formula(monkeypatch):
    monkeypatch.setattr(Scenario, "estimate", by_formula)


def target_of(size: str) -> Target:
    card = find_card(size)
    return Target(card, budget_bytes(card, "linux"), expandable_segments=True)


def made(model: str, size: str = "8gb"):
    return make_guide(model, size, target_of(size), lambda what: None)


@pytest.fixture(scope="module")
def qwen():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scenario, "estimate", by_formula)
        yield made(QWEN)


@pytest.fixture(scope="module")
def llava():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scenario, "estimate", by_formula)
        yield made(LLAVA)


def test_parts_of_both_methods_sum_to_their_peaks(qwen):
    for method, parts in qwen.parts.items():
        assert sum(parts.values()) == qwen.methods[method].peak_reserved_bytes
    assert qwen.parts["qlora"]["other"] == 37 * MIB, "the CUDA context is no part of what PyTorch reserves"
    assert qwen.parts["lora"]["base weights"] > 2 * qwen.parts["qlora"]["base weights"]


def test_every_point_is_what_its_words_give(qwen):
    points = [*qwen.ranks, *qwen.lengths, *qwen.images]
    assert len(points) == 5 + 4 + 4
    for point in points:
        config = preset_config(QWEN, "8gb", point.words).config
        source = guide_module.open_model(QWEN, None, guide_module.Path(), offline_catalog=True)
        report = fake_estimate(config, source, target_of("8gb"))
        assert (point.peak_bytes, point.tokens) == (report.peak_reserved_bytes, report.tokens["total"])
        assert point.change_bytes == report.peak_reserved_bytes - qwen.base.peak_reserved_bytes


def test_expected_speed_is_predicted_for_cards_side_by_side(qwen):
    assert [speed.key for speed in qwen.speeds] == ["a100-80gb", "rtx-4090", "rtx-4060", "rtx-3060-12gb"]
    assert qwen.speeds[0].relative == pytest.approx(312 / 25.5) and qwen.speeds[-1].relative == 1
    text = guide_markdown(qwen, "7.01 GiB")
    assert "Predicted, not measured" in text and "| NVIDIA GeForce RTX 4060 | 3.02 | ×1.2 |" in text


def test_ranks_keep_the_scale_of_the_adapters(qwen):
    assert [point.value for point in qwen.ranks] == list(RANKS)
    assert qwen.ranks[-1].words == ("training.lora.rank=64", "training.lora.alpha=128")
    assert qwen.ranks[1].change_bytes == 0, "the preset's own"


def test_a_model_with_a_fixed_input_has_no_table_of_image_sizes(llava):
    assert llava.images == ()
    text = guide_markdown(llava, "7.01 GiB")
    assert "has no effect: this model makes 576 tokens of any image" in text
    assert "image_size=" not in text


def test_savings_come_in_the_order_in_which_they_are_given_up(qwen):
    order = [saving.reason for _, saving in levers.savings()]
    places = [order.index(one.reason) for one in qwen.savings[:-1]]
    assert len(qwen.savings) >= 4 and places == sorted(places)
    assert qwen.savings[-1].lever.words == ("data.max_length=128", "data.truncation=cut"), "the last resort"
    assert all(one.lever.saved_bytes > 0 for one in qwen.savings)


def test_spendings_are_priced_the_dearest_first(qwen):
    taken = [-one.lever.saved_bytes for one in qwen.spendings]
    assert len(taken) >= 4 and taken == sorted(taken, reverse=True)
    keep = next(one.lever for one in qwen.spendings if one.lever.words == ("hardware.gradient_checkpointing=false",))
    assert keep.work == 0.75


def test_named_models_say_what_makes_them_fit(qwen):
    by_name = {one.model: one for one in qwen.named}
    assert list(by_name) == list(NAMED)
    assert by_name[LLAVA].fits and by_name[LLAVA].words == ()
    large = by_name["llava-hf/llava-1.5-13b-hf"]
    assert not large.fits and large.fits_so and large.card_size == "8gb"
    exact = ("hardware.offload_activations=true", "data.cache_features=true", "hardware.streamed_layers=9")
    assert large.words == exact
    assert large.least_bytes < large.peak_bytes


def test_a_named_model_may_not_fit_at_all(monkeypatch):
    def larger(scenario, *, fast=False) -> MemoryReport:
        report = by_formula(scenario, fast=fast)
        peak = report.peak_reserved_bytes + 7 * GIB * ("13b" in scenario.source.location)
        return dataclasses.replace(report, peak_reserved_bytes=peak, fits=peak <= report.budget_bytes)

    monkeypatch.setattr(Scenario, "estimate", larger)
    guide = made(QWEN)
    large = {one.model: one for one in guide.named}["llava-hf/llava-1.5-13b-hf"]
    assert not large.fits and not large.fits_so and not large.fits_headless and large.card_size == "10gb"
    assert "training.lora.rank=4" in large.words and large.least_bytes < large.peak_bytes


def test_choices_are_the_largest_that_fit(qwen):
    parameters = [choice.parameters for choice in qwen.choices]
    assert parameters == sorted(parameters, reverse=True) and len(parameters) == 8
    assert all(choice.peak_bytes <= qwen.budget_bytes for choice in qwen.choices)
    assert qwen.num_fitting > 8


def test_advice_is_computed(qwen):
    assert qwen.advice.upcast_bytes == 700 * MIB, "neither what is 4-bit nor what is fp32 already"
    assert qwen.advice.vocabulary == 151_936
    assert qwen.advice.logits_bytes == qwen.base.tokens["total"] * 151_936 * 4
    assert qwen.advice.named_head_saved_bytes == -900 * MIB


def test_the_text_has_no_gaps_and_is_short(qwen, llava):
    for guide in (qwen, llava):
        text = guide_markdown(guide, "7.01 GiB = 7.62 of the card - 0.22 CUDA context - 0.39 others")
        assert len(text.split()) < 1400, "five minutes"
        assert not re.search(r"\n\n\n|None|nan|\{\{|&", text)
        assert "9,656,935,168" in text and "19.3 GB" in text
        assert "512 + 576 = 1,088 tokens" in text
        assert "the peak changes by +0.88 GiB" in text
        for heading in ("Will it fit?", "What each knob costs", "Out of memory", "Which model", "common advice"):
            assert f"## {heading}" in text or f"## Where {heading}" in text


def test_tables_are_whole(qwen):
    for block in guide_markdown(qwen, "7.01 GiB").split("\n\n"):
        lines = block.splitlines()
        if lines and lines[0].startswith("|"):
            assert len({line.count("|") for line in lines}) == 1 and len(lines) >= 3, block


def test_every_command_in_the_text_is_one_that_the_program_takes(qwen):
    from typer.main import get_command

    from vlmtune.cli import app

    commands = get_command(app).commands
    for line in re.findall(r"`vlmtune ([^`]+)`", guide_markdown(qwen, "7.01 GiB")):
        name, *words = line.split()
        command = commands[name]
        if hasattr(command, "commands"):
            command, words = command.commands[words[0]], words[1:]
        known = {option for param in command.params for option in param.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_a_card_of_48_gb_starts_from_lora(monkeypatch):
    guide = made(QWEN, "48gb")
    assert guide.base.fits and guide.methods["lora"].peak_reserved_bytes == guide.base.peak_reserved_bytes
    assert all(one.fits for one in guide.named)
    text = guide_markdown(guide, "43.85 GiB")
    assert text.count("it fits as the preset is") == 4


def test_the_command_shows_writes_and_prints_json(run_cli, tmp_path):
    file = tmp_path / "guide.md"
    answer = run_cli("guide", "--model", LLAVA.upper(), "--gpu", "8gb", "--md", file)
    assert (answer.code, answer.stdout) == (0, f"wrote {file}\n")
    assert file.read_text(encoding="utf-8").startswith(f"# Tuning {LLAVA}\n")
    shown = run_cli("guide", "--gpu", "8gb").stdout
    assert max(map(len, shown.splitlines())) <= 80 and f"Tuning {QWEN}" in shown
    assert "…" not in shown
    values = json.loads(run_cli("guide", "--gpu", "24gb", "--json").stdout)
    assert (values["preset"], values["model"]) == ("24gb", "Qwen/Qwen3-VL-8B-Instruct")
    assert {point["value"] for point in values["ranks"]} == set(RANKS)


def test_a_file_that_cannot_be_written_is_an_error(run_cli, tmp_path):
    answer = run_cli("guide", "--gpu", "8gb", "--md", tmp_path / "no" / "guide.md")
    assert answer.code == 1 and "cannot be written: No such file or directory" in answer.stderr
