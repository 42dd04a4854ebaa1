"""The optimizer that a plan asks for."""

import dataclasses

import pytest
import torch
from bitsandbytes.optim import optimizer as library
from tiny.rows import tiny_plan
from torch import nn

from vlmtune.compat import bitsandbytes as bnb
from vlmtune.levers.optimizer import build_optimizer


@pytest.mark.parametrize(("name", "waits"), [("adamw_8bit", 0), ("paged_adamw_8bit", 1)])
def test_no_step_waits_for_the_card_and_who_reads_states_in_main_memory_does(name, waits, models, monkeypatch):
    """bitsandbytes' own waits at each parameter: five times here."""
    waited = []
    monkeypatch.setattr(library, "sync_gpu", waited.append)
    plan = dataclasses.replace(tiny_plan(models("llava").folder), optimizer=name)
    model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(5)))
    model(torch.ones(8)).sum().backward()

    def state(optimizer, parameter, dtype=torch.float32):
        return torch.zeros_like(parameter, dtype=dtype)

    with (
        bnb.UPDATE_8BIT.replaced(lambda *args, **kwargs: None),
        bnb.UPDATE_32BIT.replaced(lambda *args, **kwargs: None),
        bnb.GET_STATE_BUFFER.replaced(state),
    ):
        optimizer = build_optimizer(model, plan)
        optimizer.step()
    assert waited == []
    assert len(optimizer.state_dict()["state"]) == 5
    assert len(waited) == waits
