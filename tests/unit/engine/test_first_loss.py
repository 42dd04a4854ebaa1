"""A loss that no model has before it has learned anything stops the run at its first step, and says why."""

from types import SimpleNamespace

import pytest
import torch

from vlmtune.data.collate import WHERE
from vlmtune.engine.trainer import TuneTrainer
from vlmtune.errors import VlmtuneError


@pytest.fixture
def step(monkeypatch):
    """A function that makes a training step, whose loss is this, and looks at it."""

    def run(loss: float, after: int = 0) -> float:
        trainer = object.__new__(TuneTrainer)
        trainer.state, trainer.losses = SimpleNamespace(global_step=after + 1), []
        trainer.accelerator = SimpleNamespace(sync_gradients=False)
        trainer.plan = SimpleNamespace(base_dtype="bf16", loss_scaling=False, sharded=False)
        trainer.model = torch.nn.Identity()
        monkeypatch.setattr(TuneTrainer, "_forward_and_backward", lambda *_: torch.tensor(loss))
        made = trainer.training_step(trainer.model, {WHERE: ["rows.jsonl:3"]})
        trainer.refuse_no_number()
        return made

    return run


@pytest.mark.parametrize("loss", [2.6e10, 1e4, float("nan"), float("inf")])
def test_damaged_weights_show_at_the_first_step(step, loss):
    with pytest.raises(VlmtuneError, match=r"the loss is .* before anything was learned, rows rows\.jsonl:3") as raised:
        step(loss)
    assert raised.value.hint.startswith("the model's weights are damaged, or overflow")


@pytest.mark.parametrize(("loss", "after"), [(0.1, 0), (12.5, 0), (90.0, 0), (2e4, 1)])
def test_what_untrained_heads_and_later_steps_have_passes(step, loss, after):
    assert step(loss, after) == pytest.approx(loss)
