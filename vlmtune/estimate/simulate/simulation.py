"""The trainer's own step, run without weights: build, loss, backward, optimizer; what it allocates is recorded."""

import gc
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vlmtune.compat import bitsandbytes as bnb
from vlmtune.engine import callbacks
from vlmtune.engine.ranks.gradients import sum_gradients
from vlmtune.engine.runtime import collector_paused, freeze_libraries
from vlmtune.engine.step import LABELLED, forward_loss, ready
from vlmtune.estimate.allocator.caching import EMPTY_CACHE, RESET_PEAK
from vlmtune.estimate.main_memory import weights_of
from vlmtune.estimate.simulate.device import as_on_device
from vlmtune.estimate.simulate.record import (
    ACTIVATIONS,
    CHECKS,
    GRADIENTS,
    INPUTS,
    OPTIMIZER,
    SHARES,
    STREAMED,
    Hidden,
    Log,
    Recorder,
    no_hidden,
)
from vlmtune.estimate.simulate.repeat import SimulatedGraphs, repeat_step
from vlmtune.estimate.simulate.weights import Load, loading_of
from vlmtune.estimate.timing.kernels import Kernel
from vlmtune.estimate.timing.operations import updates_of
from vlmtune.levers.optimizer import build_optimizer
from vlmtune.models.attention.packs import num_rows
from vlmtune.models.build import base_of, build_model, family_of
from vlmtune.models.embeddings import tensors_in_main_memory
from vlmtune.models.features import serve_features
from vlmtune.models.graphs.layers import graphs_of
from vlmtune.models.streaming import stream_of
from vlmtune.plan.types import RunPlan

SCALAR_BYTES = 8
EVALUATION = "evaluation"
"""The phase of a run's log with the losses of held-out rows."""
OF_IMAGES = ("vision", "projector")
"""Parts whose work follows the images."""
Batch = dict[str, Tensor]
Steps = list[list[Batch]]
"""Optimizer steps in their order, each with its micro-batches."""


@dataclass(frozen=True)
class Run:
    """What is simulated, besides the plan."""

    steps: Steps
    hidden: Hidden = no_hidden
    """What operations take besides their outputs (`cuda.hidden_of`)."""
    load: Load | Literal["as planned"] | None = "as planned"
    """Records how the weights come to the device; None: they are simply there."""
    evaluated: Sequence[Batch] = ()
    """Held-out rows, each on its own, whose losses are computed after the steps."""
    form: str | None = None
    """How batches carry features (`models.features`); None where they carry pixels."""
    answered: Callable[[nn.Module, RunPlan, Recorder], int] | None = None
    """Records answers to held-out rows after that, and returns how many are answered at once."""
    repeat: bool = False
    """Append the first step once more, as it is when the optimizer's states exist, without simulating it; where layers
    are CUDA graphs the steps have come twice."""


def simulate(plan: RunPlan, run: Run) -> Log:
    """Return what training `plan` allocates; from the second step on the optimizer's states exist."""
    freeze_libraries()
    model = built(plan, run.form).train()
    with collector_paused(), as_on_device(plan):
        log = record_steps(model, plan, run)
    batch_tokens = max(batch["input_ids"].numel() for step in run.steps for batch in step)
    log.weights = weights_of(base_of(model), plan, family_of(plan), batch_tokens)
    return log


def built(plan: RunPlan, form: str | None) -> nn.Module:
    """Return the model without weights, taking features of this form."""
    model = build_model(plan, weights="none")
    if form:
        serve_features(base_of(model), form)
    return model


def record_steps(model: nn.Module, plan: RunPlan, run: Run) -> Log:
    """Return what optimizer steps of `model` allocate, whether its tensors have storage or not."""
    recorder = loaded(model, plan, run)
    _first_step_check(model, recorder)
    steps = [[ready(base_of(model), batch) for batch in step] for step in run.steps]
    with named_modules(model, recorder), recorder:
        training = _Training(model, plan, recorder)
        training.run(steps, run.repeat and not plan.cuda_graphs)
        training.evaluate(run.evaluated)
    if run.answered is not None:
        recorder.log.answers_at_once = run.answered(model, plan, recorder)
    recorder.stop()
    return recorder.log


def loaded(model: nn.Module, plan: RunPlan, run: Run) -> Recorder:
    """Return a recorder whose log has the model on its device, and nothing else."""
    recorder = recorder_of(model, plan, run.hidden)
    if graphs := graphs_of(base_of(model)):
        graphs.card = SimulatedGraphs(recorder)
    recorder.log.begin("load")
    if run.load is not None:
        load = loading_of(plan) if run.load == "as planned" else run.load
        load(model, recorder)
    add_residents(model, plan, recorder)
    recorder.log.events += [EMPTY_CACHE, RESET_PEAK]
    return recorder


def recorder_of(model: nn.Module, plan: RunPlan, hidden: Hidden) -> Recorder:
    """Return a recorder that knows which tensors of the model are in main memory, and the width of its logits."""
    recorder, base = Recorder(hidden), base_of(model)
    recorder.vocabulary = base.get_output_embeddings().out_features
    recorder.follows_images = lambda module: family_of(plan).part_of(module) in OF_IMAGES
    for tensor in tensors_in_main_memory(base, plan):
        recorder.main_memory.add(tensor)
    return recorder


def add_residents(model: nn.Module, plan: RunPlan, recorder: Recorder) -> None:
    """Record the tensors that stay in memory for the whole run, by part and format."""
    family = family_of(plan)
    for name, tensor in _resident(base_of(model)):
        recorder.add(tensor, _kind_of(name, tensor, family))
    if stream := stream_of(base_of(model)):
        for number, tensor in enumerate(stream.resident):
            recorder.add(tensor, STREAMED if number < len(stream.buffers) else SHARES)


class _Training:
    """The trainer's own steps, one after the other; its optimizer lives as long, as in an evaluation between them."""

    def __init__(self, model: nn.Module, plan: RunPlan, recorder: Recorder) -> None:
        self.model, self.plan, self.recorder = model, plan, recorder
        self.optimizer = build_optimizer(model, plan)
        recorder.allocate(SCALAR_BYTES, OPTIMIZER, "sum of losses")
        self.num_items = self.loss = self.norm = None
        """The last ones, which the trainer keeps."""

    def run(self, steps: Steps, repeat: bool) -> None:
        """Record the steps; `repeat` the first once more behind them."""
        recorder, ends = self.recorder, [len(self.recorder.log.events)]
        for number, batches in enumerate(steps, 1):
            recorder.log.begin(f"step {number}")
            self._forward_and_backward(batches)
            self._update()
            gc.collect()
            ends.append(len(recorder.log.events))
            if number == 1:
                _first_step_check(self.model, recorder)
        recorder.log.streamed_bytes = self._streamed_bytes()
        if repeat:
            recorder.log.begin(f"step {len(steps) + 1}")
            repeat_step(recorder, *ends[:2])

    def _streamed_bytes(self) -> int:
        """Return what has come to the card by now of layers that do not stay there."""
        stream = stream_of(base_of(self.model))
        return stream.copied_bytes if stream else 0

    def _forward_and_backward(self, batches: list[Batch]) -> None:
        last, self.num_items = self.num_items, self.recorder.allocate(SCALAR_BYTES, INPUTS, "labelled tokens")
        if last is not None:
            self.recorder.free(last)
        for batch, times in _without_repeats(batches):
            streamed_bytes = self._streamed_bytes()
            self.recorder.ledger.taken()
            self.recorder.log.num_rows += num_rows(batch)
            self.recorder.kind = INPUTS
            inputs = copied(batch)
            self.recorder.kind = ACTIVATIONS
            loss = forward_loss(self.model, inputs, self.plan, num_items=1)  # the real number is counted in main memory
            del inputs  # as in the trainer
            self.recorder.kind = GRADIENTS
            loss.backward()
            self.loss = loss.detach()
            self.recorder.log.num_batches += 1
            launched, came_bytes = self.recorder.ledger.taken(), self._streamed_bytes() - streamed_bytes
            if came_bytes and not self.plan.sharded:  # there they come from other cards
                launched.tokens[Kernel("bus", came_bytes)] += 1
            self.recorder.log.batches += times * [launched]

    def _update(self) -> None:
        self.recorder.kind = OPTIMIZER
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if self.plan.num_gpus > 1:
            sum_gradients(trainable, total=lambda values: values, add_up=lambda flat: None)
        self.norm = torch.nn.utils.clip_grad_norm_(trainable, self.plan.max_grad_norm)
        clipping = self.recorder.ledger.taken().tokens
        self.optimizer.step()
        self.recorder.log.updates.append(clipping + updates_of(self.optimizer, self.recorder.ledger.taken().tokens))
        self.optimizer.zero_grad()

    def evaluate(self, rows: Sequence[Batch]) -> None:
        """Record the losses of held-out rows."""
        if not rows:
            return
        self.recorder.log.begin(EVALUATION)
        flops = self.recorder.log.flops
        self.model.eval()
        for row in rows:
            self.recorder.kind = INPUTS
            inputs = copied(row)
            self.recorder.kind = ACTIVATIONS
            with torch.no_grad():
                forward_loss(self.model, inputs, self.plan, num_items=1)
            del inputs
        self.model.train()
        self.recorder.log.flops = flops  # of the steps alone


def copied(batch: Batch) -> Batch:
    return {key: value.clone() for key, value in batch.items()}


def _without_repeats(batches: list[Batch]) -> list[tuple[Batch, int]]:
    """The batches that can change the peak, and for how many each stands: of a run of equal shapes the first two."""
    kept: list[Batch] = []
    times: list[int] = []
    for batch in batches:
        shapes = [{key: other[key].shape for key in other if key != LABELLED} for other in (batch, *kept[-2:])]
        if len(shapes) < 3 or shapes[0] != shapes[1] or shapes[0] != shapes[2]:
            kept.append(batch)
            times.append(0)
        times[-1] += 1
    return list(zip(kept, times, strict=True))


def _first_step_check(model: nn.Module, recorder: Recorder) -> None:
    """The check that no frozen tensor changes sums them a piece at a time, converted to int64 (engine/callbacks.py)."""
    for parameter in model.parameters():
        if not parameter.requires_grad and not recorder.main_memory.holds(parameter):
            piece_bytes = min(parameter.nbytes, callbacks.DIGEST_BYTES)
            recorder.free(recorder.allocate(piece_bytes // 2 * torch.int64.itemsize, CHECKS, "sum"))


def _resident(model: nn.Module):
    """Yield every tensor that stays in memory for the whole run, 4-bit constants included."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        yield name, tensor
        for constant in _constants(bnb.state_of(tensor)):
            yield name, constant


def _constants(state) -> list[Tensor]:
    if state is None:
        return []
    nested = [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
    return [state.absmax, state.code, *nested]


def _kind_of(name: str, tensor: Tensor, family) -> str:
    part = family.part_of(name)
    if ".lora_" in name:
        return f"adapters: {part}"
    return f"weights: {part} {'4-bit' if tensor.dtype == torch.uint8 else str(tensor.dtype).removeprefix('torch.')}"


@contextmanager
def named_modules(model: nn.Module, recorder: Recorder):
    """Tell the recorder which module is at work."""
    handles = []

    def enter(name: str) -> Callable:
        is_of_images = recorder.follows_images(name)

        def hook(module, args) -> None:
            recorder.module = name
            recorder.ledger.enter(is_of_images)

        return hook

    for name, module in base_of(model).named_modules():
        if not list(module.children()):
            handles.append(module.register_forward_pre_hook(enter(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
