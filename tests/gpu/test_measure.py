"""What the GPU scripts build of a plan, on the CPU: they run on a card too seldom to show that they are stale."""

import torch
from gpu.measure import made_on_the_card
from tiny.rows import tiny_plan

from vlmtune.compat.bitsandbytes import state_of


def test_random_weights_are_those_of_the_plan(models):
    model = made_on_the_card(tiny_plan(models("llava").folder, training={"method": "qlora"}))
    assert not any(tensor.is_meta for tensor in model.parameters())
    packed = [tensor for tensor in model.parameters() if state_of(tensor) is not None]
    assert packed and all(tensor.dtype == torch.uint8 for tensor in packed)
