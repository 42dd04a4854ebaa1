"""The GPU at hand, with a driver and a torch that are made up."""

import os
from types import SimpleNamespace

import pytest
import torch

from vlmtune.errors import VlmtuneError
from vlmtune.hardware import at_hand
from vlmtune.hardware.calibration import Calibration, Figures, ShortRun, Speeds, keep_calibration, kept_calibration
from vlmtune.hardware.cards import MIB
from vlmtune.hardware.sensors import GpuProcess, GpuReading

TOTAL, NVML_TOTAL, RESERVED = 7802 * MIB, 8188 * MIB, 300 * MIB
CONTEXT = 226 * MIB
NAME, UUID = "NVIDIA GeForce RTX 4060", "aaaa-bbbb"


class Machine:
    """A card as torch and NVML show it; tests change what they are about."""

    def __init__(self):
        self.properties = SimpleNamespace(
            name=NAME, major=8, minor=9, multi_processor_count=24, total_memory=TOTAL, uuid=UUID
        )
        self.available, self.has_context, self.nvml, self.share = True, False, True, 1.0
        self.nvml_total, self.used, self.own = NVML_TOTAL, 900 * MIB, None

    def read_gpu(self, uuid):
        if not self.nvml or uuid != f"GPU-{UUID}":
            return None
        own = () if self.own is None else (GpuProcess(os.getpid(), "python", self.own),)
        return GpuReading(NAME, self.nvml_total, self.used, 40, 90, "580.1", "13.0", (GpuProcess(1, "Xorg", 5), *own))

    def mem_get_info(self, device):
        self.has_context = True
        return self.nvml_total - self.used, TOTAL


@pytest.fixture
def machine(monkeypatch, tmp_path):
    made = Machine()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(at_hand, "read_gpu", made.read_gpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: made.available)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: made.properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", made.mem_get_info)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: RESERVED)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: made.share)
    monkeypatch.setattr(torch._C, "_cuda_hasPrimaryContext", lambda device: made.has_context, raising=False)
    return made


def test_no_gpu_is_none_and_asking_for_one_an_error(machine):
    machine.available = False
    assert at_hand.card_at_hand() is None
    with pytest.raises(VlmtuneError, match="no GPU here that PyTorch can use") as error:
        at_hand.target_at_hand()
    assert "--gpu 8gb" in error.value.hint


def test_the_card_is_the_tables_with_what_the_driver_says(machine):
    machine.properties.total_memory = TOTAL - MIB
    card = at_hand.card_at_hand()
    assert (card.key, card.total_bytes_linux, card.context_bytes) == ("rtx-4060", TOTAL - MIB, CONTEXT)


def test_a_card_without_a_row_works(machine):
    machine.properties.name, machine.properties.major = "NVIDIA Future 9000", 14
    target = at_hand.target_at_hand()
    assert (target.card.name, target.card.sm) == ("NVIDIA Future 9000", (14, 9))
    assert target.budget_bytes == NVML_TOTAL - 900 * MIB - CONTEXT


def test_before_the_context_exists_its_bytes_are_taken_off_what_is_free(machine):
    assert at_hand.target_at_hand().budget_bytes == NVML_TOTAL - 900 * MIB - CONTEXT
    assert not machine.has_context, "looking at the card must not make a context"


def test_with_the_context_what_is_free_and_what_torch_holds_can_be_used(machine):
    machine.has_context = True
    assert at_hand.target_at_hand().budget_bytes == NVML_TOTAL - 900 * MIB + RESERVED


def test_a_context_that_can_still_grow_is_taken_off(machine):
    machine.has_context, machine.own = True, RESERVED + 200 * MIB
    assert at_hand.target_at_hand().budget_bytes == NVML_TOTAL - 900 * MIB + RESERVED - 26 * MIB
    machine.own = RESERVED + 400 * MIB
    assert at_hand.target_at_hand().budget_bytes == NVML_TOTAL - 900 * MIB + RESERVED


@pytest.mark.parametrize(
    "change", ({"nvml": False}, {"nvml_total": 3 * NVML_TOTAL, "used": 2 * NVML_TOTAL + 2048 * MIB})
)
def test_without_nvml_or_with_nvml_speaking_of_another_card_torch_tells_what_is_free(machine, change):
    vars(machine).update(change)
    assert at_hand.target_at_hand().budget_bytes == machine.nvml_total - machine.used + RESERVED
    assert machine.has_context


def test_the_process_may_be_held_to_a_share(machine):
    machine.share = 0.5
    assert at_hand.target_at_hand().budget_bytes == TOTAL // 2


def test_beside_the_card_there_is_main_memory(machine, monkeypatch):
    monkeypatch.setattr(at_hand, "available_to_this_process", lambda: 5 * MIB)
    assert at_hand.target_at_hand().main_memory_bytes == 5 * MIB


def test_the_machine_may_lack_what_triton_wants(machine, monkeypatch):
    monkeypatch.setattr(at_hand, "why_no_triton", lambda: "no compiler")
    assert at_hand.target_at_hand().no_triton == "no compiler"


def test_a_reserve_that_was_asked_for_is_left(machine):
    without = at_hand.target_at_hand().budget_bytes
    assert at_hand.target_at_hand(reserve_bytes=MIB).budget_bytes == without - MIB
    assert at_hand.target_at_hand(reserve_bytes=2 * NVML_TOTAL).budget_bytes == 0


def test_segments_are_those_of_this_process_unless_a_platform_is_named(machine, monkeypatch):
    monkeypatch.setattr(at_hand.sys, "platform", "linux")
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    for settings, expected in (("", False), ("garbage_collection_threshold:0.8, expandable_segments:True", True)):
        monkeypatch.setenv("PYTORCH_ALLOC_CONF", settings)
        assert at_hand.target_at_hand().expandable_segments is expected
        assert at_hand.target_at_hand("linux").expandable_segments is True
        assert at_hand.target_at_hand("windows").expandable_segments is False
    monkeypatch.setattr(at_hand.sys, "platform", "win32")
    assert at_hand.target_at_hand().expandable_segments is False


def test_what_was_measured_on_this_card_is_used(machine):
    figures = Figures(333 * MIB, ((8 * MIB, MIB), (8 * MIB,)))
    kept = Calibration(at_hand.setup_at_hand(), figures, ShortRun(1, 2, 3, 4))
    path = keep_calibration(kept)
    assert kept_calibration(kept.setup) == kept and path.name == "nvidia-geforce-rtx-4060-aaaa-bbb.json"
    card = at_hand.card_at_hand()
    assert (card.context_bytes, card.sources["context_bytes"]) == (333 * MIB, "measured by vlmtune calibrate")
    assert (card.cublas_forward_bytes, card.cublas_backward_bytes) == ((8 * MIB, MIB), (8 * MIB,))
    assert at_hand.target_at_hand().budget_bytes == NVML_TOTAL - 900 * MIB - 333 * MIB


def test_what_was_measured_with_another_torch_or_is_damaged_is_not_used(machine, monkeypatch):
    path = keep_calibration(Calibration(at_hand.setup_at_hand(), Figures(333 * MIB, ((), ())), ShortRun(1, 2, 3, 4)))
    with monkeypatch.context() as changed:
        changed.setattr(torch, "__version__", "9.9")
        assert at_hand.card_at_hand().context_bytes == CONTEXT
    for text in ('{"setup": 3', "[]", '{"setup": {}}'):
        path.write_text(text)
        assert at_hand.card_at_hand().context_bytes == CONTEXT


def test_a_context_that_could_not_be_measured_is_the_tables(machine):
    keep_calibration(Calibration(at_hand.setup_at_hand(), Figures(None, ((MIB,), (MIB,))), ShortRun(1, 2, 3, 4)))
    card = at_hand.card_at_hand()
    assert card.context_bytes == CONTEXT and (card.cublas_forward_bytes, card.cublas_backward_bytes) == ((MIB,), (MIB,))


def test_measured_speeds_win_over_the_data_sheet(machine):
    speeds = Speeds(25e12, 12e12, 240e9, 13.6e9, 21e-6)
    figures = Figures(None, ((MIB,), (MIB,)))
    keep_calibration(Calibration(at_hand.setup_at_hand(), figures, ShortRun(1, 2, 3, 4), speeds))
    card = at_hand.card_at_hand()
    assert (card.bf16_tflops, card.fp32_tflops) == (pytest.approx(25 / 0.83), pytest.approx(16))
    assert (card.bandwidth_gb_s, card.host_gb_s) == (pytest.approx(240 / 0.88), pytest.approx(16))
    assert card.plain_launch_s == 21e-6 and card.sources["host_gb_s"] == "measured by vlmtune calibrate"
