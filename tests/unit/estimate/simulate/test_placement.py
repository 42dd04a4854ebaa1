"""Where tensors of a weightless computation are, and that taking one from there to here takes no memory."""

import torch

from vlmtune.estimate.simulate.record import Recorder

WEIGHT = torch.empty(4, 100, device="meta")


def test_a_move_between_devices_is_none_on_a_gpu():
    ids = torch.arange(100)
    mask = torch.ones(100, dtype=torch.bool)[None].expand(4, 100)
    pixels = torch.ones(7)
    with Recorder() as recorder:
        recorder.add(ids, "inputs")
        recorder.add(mask, "inputs")
        recorder.add(pixels, "inputs")
        recorder.add(WEIGHT, "weights")
        before = len(recorder.log.events)
        moved = [ids.to(WEIGHT.device), mask.to(WEIGHT.device), pixels.to(WEIGHT.device), WEIGHT.to(ids.device)]
        assert len(recorder.log.events) == before
        assert torch.equal(moved[0], ids) and moved[1].stride() == mask.stride() and moved[3].is_meta
        converted = pixels.to(WEIGHT.device, torch.bfloat16)
        assert recorder.log.events[before:] == [(before + 1, converted.numel() * 2)]


def test_gradients_pass_a_move():
    weight = torch.empty(4, 100, device="meta", requires_grad=True)
    with Recorder():
        (weight * 2).to("cpu").sum().backward()
    assert weight.grad.shape == weight.shape


def test_of_main_memory_the_card_has_what_is_copied_there_and_nothing_else():
    table = torch.zeros(()).expand(1000, 64)
    ids = torch.arange(10)[None]
    with Recorder() as recorder:
        recorder.main_memory.add(table)
        recorder.add(table, "weights")
        recorder.add(ids, "inputs")
        before = len(recorder.log.events)
        rows = torch.nn.functional.embedding(ids.to("cpu"), table) * 2
        pinned = torch.empty((4, 100), dtype=torch.float32, pin_memory=True)
        assert pinned.copy_(WEIGHT, non_blocking=True) is pinned
        assert len(recorder.log.events) == before and not pinned.is_meta
        on_card = [rows.to("meta", copy=True), pinned.to("meta", non_blocking=True)]
        assert all(tensor.is_meta for tensor in on_card)
        taken = [(before + 1, 10 * 64 * 4), (before + 2, 4 * 100 * 4)]
        assert recorder.log.events[before:] == taken
        buffer = torch.empty(4, 100, device="meta")
        buffer.copy_(pinned)  # what is refilled takes nothing anew
        assert recorder.log.events[before:] == [*taken, (before + 3, 4 * 100 * 4)]
        del rows, pinned
        assert len(recorder.log.events) == before + 3
        on_card.clear()
        assert sorted(recorder.log.events[before + 3 :]) == [(-before - 2, 0), (-before - 1, 0)]
