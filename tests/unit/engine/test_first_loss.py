"""A loss that no model has before it has learned anything stops the run at its first step, and says why."""

from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer

from vlmtune.data.collate import WHERE
from vlmtune.engine.trainer import TuneTrainer
from vlmtune.errors import VlmtuneError


@pytest.fixture
def step(monkeypatch):
    """A function that makes a training step, of which the library returns this loss."""

    def run(loss: float, after: int = 0, dtype: str = "bf16"):
        trainer = object.__new__(TuneTrainer)
        trainer.state = SimpleNamespace(global_step=after)
        trainer.plan = SimpleNamespace(base_dtype=dtype, loss_scaling=False)
        monkeypatch.setattr(Trainer, "training_step", lambda *_: torch.tensor(loss))
        return trainer.training_step(None, {WHERE: ["rows.jsonl:3"]})

    return run


@pytest.mark.parametrize("loss", [2.6e10, 1e4, float("nan"), float("inf")])
def test_damaged_weights_show_at_the_first_step(step, loss):
    with pytest.raises(VlmtuneError, match=r"the loss is .* before anything was learned, rows rows\.jsonl:3") as raised:
        step(loss)
    assert "weights are damaged" in raised.value.hint and "mixed_precision" not in raised.value.hint


def test_half_precision_is_named_where_it_may_be_the_reason(step):
    with pytest.raises(VlmtuneError) as raised:
        step(float("nan"), dtype="fp16")
    assert raised.value.hint.endswith("or set hardware.mixed_precision: no")


@pytest.mark.parametrize(("loss", "after"), [(0.1, 0), (12.5, 0), (90.0, 0), (2e4, 1)])
def test_what_untrained_heads_and_later_steps_have_passes(step, loss, after):
    assert step(loss, after) == loss
