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
