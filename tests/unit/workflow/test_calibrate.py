"""Calibrating a card that is made up: what is measured, and the small run that it trains."""

import dataclasses
import os
from types import SimpleNamespace

import pytest
import torch

from vlmtune.errors import VlmtuneError
from vlmtune.estimate.given_rows import GivenRows
from vlmtune.hardware.calibration import Setup, Speeds
from vlmtune.hardware.cards import MIB, Target, find_card
from vlmtune.hardware.sensors import GpuProcess, GpuReading
from vlmtune.plan.types import Device
from vlmtune.runs.folder import RunFolder
from vlmtune.workflow import calibrate

SETUP = Setup("card", "aaaa", "580.1", "2.11")


def reading(used_mib: int, own_mib: int | None = None) -> GpuReading:
    own = () if own_mib is None else (GpuProcess(os.getpid(), "python", own_mib * MIB),)
    return GpuReading("card", 8192 * MIB, used_mib * MIB, 40, 90, "580.1", "13.0", own)


def test_blocks_that_stay_and_are_no_tensors_are_cublas_own(monkeypatch):
    def segments(*blocks):
        made = [{"address": address, "size": size, "state": state} for address, size, state in blocks]
        return [{"blocks": made[:1]}, {"blocks": made[1:]}]

    used = "active_allocated"
    old, forward = (1, 512, used), ((2, MIB, used), (3, 32 * MIB, used))
    tensors = []

    def linear(rows, weight, bias):
        tensors.append(torch.nn.functional.linear(rows, weight, bias))
        return tensors[0]

    shown = iter(
        (
            lambda: segments(old),
            lambda: segments(old, *forward, (tensors[0].data_ptr(), 2 * MIB, used), (9, 4 * MIB, "inactive")),
            lambda: segments(old, *forward),
            lambda: segments(old, *forward, (4, 16 * MIB, used)),
        )
    )
    monkeypatch.setattr(calibrate, "F", SimpleNamespace(linear=linear))
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: next(shown)())
    assert calibrate.measure_cublas("cpu") == ((32 * MIB, MIB), (16 * MIB,))


@pytest.mark.parametrize(
    ("before", "after", "expected_mib"),
    [
        (reading(500), reading(2000, own_mib=700), 400),  # the driver's own figure, whatever others take meanwhile
        (reading(500), reading(1200), 400),
        (reading(500), reading(820), None),  # 20 MiB: another program gave memory back
        (reading(500), reading(5000), None),
        (None, reading(1200, own_mib=700), None),
        (reading(500), None, None),
    ],
)
def test_the_context_is_what_the_process_takes_outside_of_the_allocator(monkeypatch, before, after, expected_mib):
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 300 * MIB)
    expected = None if expected_mib is None else expected_mib * MIB
    assert calibrate._context_bytes(before, after) == expected


@pytest.fixture
def card_here(monkeypatch):
    """A card of 8 GB, on which nothing is measured."""
    target = Target(find_card("rtx-4060"), 7000 * MIB, True)
    monkeypatch.setattr(calibrate, "target_at_hand", lambda: target)
    monkeypatch.setattr(calibrate, "setup_at_hand", lambda: SETUP)
    monkeypatch.setattr(calibrate, "reading_at_hand", lambda: reading(900, own_mib=700))
    monkeypatch.setattr(calibrate, "measure_cublas", lambda device: ((40 * MIB,), (20 * MIB,)))
    monkeypatch.setattr(calibrate, "_forget_cublas", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 300 * MIB)
    monkeypatch.setattr(calibrate, "probe_device", lambda: Device("cuda", "card", True, 8192 * MIB))
    small = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    monkeypatch.setattr(calibrate, "TEXT", small)
    monkeypatch.setattr(calibrate, "VISION", small)
    monkeypatch.setattr(calibrate, "TEXT_SIZES", calibrate.TEXT_SIZES | {"num_key_value_heads": 2, "vocab_size": 640})
    return target


def test_the_run_is_estimated_with_what_was_measured(card_here, monkeypatch):
    monkeypatch.setattr(calibrate, "trained", lambda run, folder: (300 * MIB, 200 * MIB, [0.5, 0.2, 0.1]))
    monkeypatch.setattr(calibrate, "measured_speeds", lambda device: Speeds(83e12, 75e11, 88e9, 8.5e9))
    targets = []

    def estimate_plan(plan, source, rows, target):
        targets.append(target)
        assert plan.rows_per_step == len(rows.samples)  # logs weigh little beside so many
        assert (plan.method, plan.max_steps, len(rows.samples)) == ("qlora", 6, 16)
        time = SimpleNamespace(kernels_s=0.1, plain_launches=100_000)
        return SimpleNamespace(peak_reserved_bytes=303 * MIB, peak_allocated_bytes=199 * MIB, time=time)

    monkeypatch.setattr(calibrate, "estimate_plan", estimate_plan)
    said = []
    result = calibrate.calibrate(said.append)
    assert result.setup == SETUP and len(said) == 4
    assert result.figures.context_bytes == 400 * MIB
    assert targets[0].card.context_bytes == 400 * MIB and (
        targets[0].card.cublas_forward_bytes,
        targets[0].card.cublas_backward_bytes,
    ) == ((40 * MIB,), (20 * MIB,))
    assert [size // MIB for size in dataclasses.astuple(result.check)] == [303, 300, 199, 200]
    assert targets[0].card.bf16_tflops == pytest.approx(100) and result.speeds.plain_launch_s == pytest.approx(2e-6)


def test_the_small_run_trains_and_is_estimated(card_here, monkeypatch, tmp_path):
    monkeypatch.setattr(calibrate, "TEXT_CHARS", 40)
    run = calibrate.small_run(tmp_path)
    report = calibrate.estimate_plan(run.plan, run.source, GivenRows(run.rows), card_here)
    assert report.tokens["image"] == 576 and report.worst_row.startswith("rows.jsonl")
    on_cpu = dataclasses.replace(run.plan, device="cpu", max_steps=2, gradient_accumulation_steps=1)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 2)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1)
    reserved_bytes, allocated_bytes, steps_s = calibrate.trained(dataclasses.replace(run, plan=on_cpu), tmp_path)
    assert (reserved_bytes, allocated_bytes) == (2, 1)
    first, last = RunFolder(tmp_path / "runs" / "calibration").read_log()
    assert 0 < last.data_wait_share < 1
    assert steps_s == [pytest.approx((last.elapsed_s - first.elapsed_s) * (1 - last.data_wait_share), rel=1e-9)]
    assert (tmp_path / "runs" / "calibration" / "adapter").is_dir()


def test_a_full_card_is_refused_before_anything_is_made(card_here, monkeypatch):
    full = dataclasses.replace(card_here, budget_bytes=200 * MIB)
    monkeypatch.setattr(calibrate, "target_at_hand", lambda: full)
    with pytest.raises(VlmtuneError, match="200 MiB free, calibrating takes 1,024"):
        calibrate.calibrate(print)
