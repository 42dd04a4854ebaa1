"""Which card a command estimates for."""

import dataclasses

import pytest
import torch

from vlmtune.cli.targets import choose_target
from vlmtune.hardware import at_hand, sensors
from vlmtune.hardware.cards import MIB, Target, find_card
from vlmtune.units import GIB

HERE = dataclasses.replace(find_card("rtx-3090"), total_bytes_linux=20 * GIB)


@pytest.fixture
def machine(monkeypatch):
    """A machine with or without a driver and a GPU; the calls of `target_at_hand` are kept."""
    asked = []

    def target_at_hand(platform, reserve_bytes):
        asked.append((platform, reserve_bytes))
        return Target(HERE, 15 * GIB, True)

    def install(driver: bool, gpu: bool) -> list:
        monkeypatch.setattr(sensors, "has_driver", lambda: driver)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(at_hand, "target_at_hand", target_at_hand)
        return asked

    return install


def test_the_gpu_here_is_the_default(machine):
    asked = machine(driver=True, gpu=True)
    chosen = choose_target(None, "8gb", None, None)
    assert (chosen.target.card, chosen.card_from) == (HERE, "the GPU here")
    assert chosen.budget_from == "15.00 GiB of 20.00 can be reserved at this moment"
    assert choose_target("here", None, "windows", 1.5).budget_from.endswith(", 1.50 left free")
    assert asked == [(None, None), ("windows", 1.5 * GIB)]


@pytest.mark.parametrize(("driver", "gpu"), [(False, True), (True, False)])
def test_without_a_gpu_the_preset_decides(machine, driver, gpu):
    asked = machine(driver, gpu)
    chosen = choose_target(None, "12gb", None, None)
    assert (chosen.target.card, chosen.card_from) == (find_card("12gb"), "preset 12gb")
    assert choose_target(None, None, None, None).card_from == "no GPU here, no preset: 8gb"
    assert asked == []


def test_a_named_card_is_taken_although_a_gpu_is_here(machine):
    asked = machine(driver=True, gpu=True)
    chosen = choose_target("rtx-4060", "12gb", "windows", 0.5)
    assert (chosen.target.card, chosen.card_from) == (find_card("rtx-4060"), "--gpu")
    assert chosen.target.budget_bytes == (8188 - 226 - 512) * MIB and not chosen.target.expandable_segments
    assert chosen.budget_from == "7.28 GiB = 8.00 of the card - 0.22 CUDA context - 0.50 others"
    assert asked == []
