"""Losses are read once a step: each is a number, or the run ends with the names of its rows."""

from types import SimpleNamespace

import pytest
import torch

from vlmtune.engine.trainer import TuneTrainer
from vlmtune.errors import VlmtuneError


def trainer_with(*losses: float) -> TuneTrainer:
    trainer = object.__new__(TuneTrainer)
    trainer.losses = [(torch.tensor(loss), [f"rows.jsonl:{line}"]) for line, loss in enumerate(losses, 1)]
    trainer.state, trainer.plan = SimpleNamespace(global_step=7), SimpleNamespace(loss_scaling=False)
    return trainer


@pytest.mark.parametrize("wrong", ["nan", "inf"])
def test_a_loss_of_any_batch_that_is_no_number_names_its_rows(wrong):
    with pytest.raises(VlmtuneError, match=f"the loss became {wrong} at step 7, rows rows.jsonl:2"):
        trainer_with(1.0, float(wrong), 2.0).refuse_no_number()


def test_losses_of_a_step_are_not_those_of_the_next():
    trainer = trainer_with(1.0, 2.0)
    trainer.refuse_no_number()
    assert trainer.losses == []
