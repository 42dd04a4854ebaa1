"""transformers' Trainer itself, recorded on real tensors, allocates what the simulation says: event for event.

The run's own trainer, with its data loader, callbacks and checkpoint, on the CPU. What differs there and not on a GPU:
- Batches are on the device from the start. Here a tensor is on the device when the recorder knows it, and `to` copies
  the others; what the data loader makes is not recorded.
- Sums of whole numbers convert them inside the operation: the check of frozen weights shows its memory on a GPU only.
Left out on both sides are scalars: the trainer keeps sums of losses and norms, of 8 bytes at most.
"""

import gc
import io
from contextlib import contextmanager
from itertools import groupby

import pytest
import torch
from rich.console import Console
from tiny import TINY
from tiny.rows import TinyModel, colour_rows, tiny_plan
from transformers import TrainerCallback

from vlmtune.data.collate import Collator
from vlmtune.data.dataset import TuneDataset
from vlmtune.engine import step
from vlmtune.engine.monitor import LiveView
from vlmtune.engine.train import RunRows, build_running
from vlmtune.estimate.allocator.peaks import phases_of
from vlmtune.estimate.simulate.record import ACTIVATIONS, CHECKS, GRADIENTS, INPUTS, OPTIMIZER, Log, Recorder
from vlmtune.estimate.simulate.simulation import Run, loaded, simulate
from vlmtune.estimate.simulate.steps import Steps, collated, first_steps
from vlmtune.models.build import build_model
from vlmtune.plan.types import RunPlan
from vlmtune.runs.folder import RunFolder

NUM_STEPS = 3
SCALAR_BYTES = 8
PLANS = [
    *((name, {}) for name in TINY),
    ("qwen3_vl", {"training": {"batch_size": 2, "optim": "adamw"}}),
    ("paligemma", {"training": {"method": "full"}, "hardware": {"mixed_precision": "bf16"}}),
    ("llava", {"training": {"lora": {"dropout": 0.1}}, "hardware": {"gradient_checkpointing": False}}),
]


class Phases(TrainerCallback):
    """Begins a phase of the log with each step, and another behind it."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.recorder.log.begin(f"step {state.global_step + 1}")

    def on_step_end(self, args, state, control, **kwargs) -> None:
        gc.collect()
        self.recorder.log.begin(f"after step {state.global_step}")


class Case:
    """A tiny model with rows of several lengths, and what training it allocates by two accounts."""

    def __init__(self, model: TinyModel, folder, sections: dict) -> None:
        training = {"gradient_accumulation_steps": 2, "max_steps": NUM_STEPS, **sections.get("training", {})}
        self.model, self.folder = model, folder
        self.plan = tiny_plan(model.folder, **{**sections, "training": training})
        self.rows = TuneDataset(colour_rows(folder, 6), model.processor, model.family, self.plan)
        self.lengths = [self.rows[index].labels.shape[1] for index in range(len(self.rows))]
        self.collator = Collator(model.processor)

    @property
    def steps(self) -> Steps:
        """The steps that the trainer takes."""
        return collated(first_steps(self.plan, self.lengths, NUM_STEPS), self.rows, self.collator)

    def trained(self, change=lambda trainer: None) -> Log:
        """Train; `change` may do something to the trainer."""
        none = TuneDataset([], self.model.processor, self.model.family, self.plan)
        rows = RunRows(self.rows, none, self.lengths, self.collator)
        model, folder = build_model(self.plan).train(), RunFolder.create(self.folder / "run")
        with LiveView("run", Console(file=io.StringIO())) as view:
            running = build_running(self.plan, model, folder, view, rows)
            recorder = loaded(model, self.plan, Run([], load=None))
            running.trainer.add_callback(Phases(recorder))
            change(running.trainer)
            try:
                with watched(running.trainer, recorder), recorder:
                    running.trainer.train()
            finally:
                running.interrupt.restore()
        recorder.stop()
        return recorder.log


@contextmanager
def watched(trainer, recorder: Recorder):
    """Tell the recorder what the trainer is at, and what comes to the device."""
    compute_loss, backward, fetch = trainer.compute_loss, trainer.accelerator.backward, trainer.get_batch_samples

    def loss_of(*args, **kwargs):
        recorder.kind = ACTIVATIONS
        return compute_loss(*args, **kwargs)

    def backward_of(*args, **kwargs) -> None:
        recorder.kind = GRADIENTS
        backward(*args, **kwargs)
        recorder.kind = OPTIMIZER

    def fetched(*args):
        recorder.__exit__(None, None, None)
        try:
            return fetch(*args)
        finally:
            recorder.__enter__()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "to", moving(torch.Tensor.to, recorder))
        patch.setattr(trainer, "compute_loss", loss_of)
        patch.setattr(trainer.accelerator, "backward", backward_of)
        patch.setattr(trainer, "get_batch_samples", fetched)
        yield


def moving(real, recorder: Recorder):
    """Return `Tensor.to` that copies what is not on the device yet."""

    def to(tensor, *args, **kwargs):
        device = [value for value in (*args, *kwargs.values()) if isinstance(value, str | torch.device)]
        # Inside vmap no tensor has storage, and all are on the device.
        if not device or torch._C._functorch.maybe_current_level() is not None or recorder.knows(tensor):
            return real(tensor, *args, **kwargs)
        copy = tensor.clone()
        recorder.add(copy, INPUTS, "to")
        return copy

    return to


def events(log: Log, phase: str) -> list[tuple]:
    """Return what a phase allocated and freed: (allocated or freed, kind, operation, bytes)."""
    starts = [*log.phases, ("", len(log.events))]
    index = next(index for index, (name, _) in enumerate(starts) if name == phase)
    sizes = {handle: num_bytes for handle, num_bytes in log.events if handle > 0}
    found = []
    for handle, _ in log.events[starts[index][1] : starts[index + 1][1]]:
        kind, operation, _ = log.tags[abs(handle)]
        if sizes[abs(handle)] > SCALAR_BYTES and kind != CHECKS:
            operation = "" if kind == INPUTS else operation  # a copy there, a clone here
            found.append(("allocated" if handle > 0 else "freed", kind, operation, sizes[abs(handle)]))
    return found


def in_any_order_of_frees(events: list[tuple]) -> list[tuple]:
    """Return the events with what is freed in a row sorted."""
    runs = groupby(events, key=lambda event: event[0])
    return [event for what, run in runs for event in (sorted(run) if what == "freed" else run)]


def peak(events: list[tuple]) -> int:
    """Return the most bytes that were held above what was held at first."""
    held = highest = 0
    for what, _, _, num_bytes in events:
        held += num_bytes if what == "allocated" else -num_bytes
        highest = max(highest, held)
    return highest


def simulated(plan: RunPlan, steps: Steps) -> Log:
    return simulate(plan, Run(steps, load=None, evaluated=steps[0][0]))


def parted(trained: Log, told: Log) -> list[str]:
    """Return the steps of which the two logs say different things."""
    names = [f"step {number}" for number in range(1, NUM_STEPS + 1)]
    return [name for name in names if events(trained, name) != events(told, name)]


@pytest.mark.parametrize(("name", "sections"), PLANS, ids=str)
def test_the_trainer_allocates_what_is_simulated(name, sections, models, tmp_path):
    case = Case(models(name), tmp_path, sections)
    trained, told = case.trained(), simulated(case.plan, case.steps)
    for number in range(1, NUM_STEPS + 1):
        expected, found = events(trained, f"step {number}"), events(told, f"step {number}")
        assert peak(found) == peak(expected) > 0
        if case.plan.autocast_dtype:  # which keeps its casts of weights in a hash table, and drops them in its order
            expected, found = in_any_order_of_frees(expected), in_any_order_of_frees(found)
        assert found == expected, f"in step {number}"


def keeps_logits(trainer, monkeypatch) -> None:
    kept, real = [], step._loss_sum

    def loss_sum(hidden, labels, head):
        kept.append(head(hidden).float())
        return real(hidden, labels, lambda _: kept[-1])

    monkeypatch.setattr(step, "_loss_sum", loss_sum)


def moves_all_batches_at_once(trainer, monkeypatch) -> None:
    trainer.accelerator.device_placement = True


def keeps_its_inputs(trainer, monkeypatch) -> None:
    kept, real = [], trainer._prepare_inputs

    def prepared(inputs):
        kept.append(real(inputs))
        return dict(kept[-1])

    monkeypatch.setattr(trainer, "_prepare_inputs", prepared)


def copies_weights_to_fp64(trainer, monkeypatch) -> None:
    real = trainer.compute_loss

    def compute_loss(model, *args, **kwargs):
        copies = [parameter.double() for parameter in model.parameters() if parameter.requires_grad]
        loss = real(model, *args, **kwargs)
        return loss * len(copies) / len(copies)

    monkeypatch.setattr(trainer, "compute_loss", compute_loss)


def keeps_gradients(trainer, monkeypatch) -> None:
    monkeypatch.setattr(trainer.model, "zero_grad", lambda: None)


@pytest.mark.parametrize(
    "fault",
    [keeps_logits, moves_all_batches_at_once, keeps_its_inputs, copies_weights_to_fp64, keeps_gradients],
    ids=lambda fault: fault.__name__,
)
def test_a_trainer_that_takes_more_is_seen(fault, models, tmp_path, monkeypatch):
    case = Case(models("qwen3_vl"), tmp_path, {})
    trained = case.trained(lambda trainer: fault(trainer, monkeypatch))
    monkeypatch.undo()
    assert parted(trained, simulated(case.plan, case.steps))


def test_the_optimizer_s_states_are_there_during_an_evaluation(models, tmp_path):
    case = Case(models("qwen3_vl"), tmp_path, {"training": {"optim": "adamw"}})
    phases = phases_of(simulated(case.plan, case.steps))
    ends = {phase.allocated_at_end_bytes for name, phase in phases.items() if name not in ("load", "step 1")}
    assert len(ends) == 1, "from the first step's end on"
