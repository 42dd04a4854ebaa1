"""The trainer's own step, run without weights: build, loss, backward, optimizer; what it allocates is recorded."""

import gc
from collections.abc import Callable
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vlmtune.compat import bitsandbytes as bnb
from vlmtune.compat.torch import FUSED_DEVICES
from vlmtune.engine import callbacks
from vlmtune.engine.evaluate import greedy
from vlmtune.engine.runtime import collector_paused
from vlmtune.engine.step import forward_loss
from vlmtune.estimate.allocator.caching import EMPTY_CACHE, RESET_PEAK
from vlmtune.estimate.simulate.attention import attention_of
from vlmtune.estimate.simulate.autocast import autocast_of
from vlmtune.estimate.simulate.composites import composites_of
from vlmtune.estimate.simulate.record import ACTIVATIONS, GRADIENTS, Hidden, Log, Recorder, no_hidden
from vlmtune.estimate.simulate.repeat import repeat_step
from vlmtune.estimate.simulate.weights import load_checkpoint
from vlmtune.levers.optimizer import build_optimizer
from vlmtune.models.build import base_of, build_model, family_of
from vlmtune.models.features import serve_features
from vlmtune.plan.types import RunPlan

PAGED_MIN_NUMBERS = 100_000
CHECKED_STEP = 2
"""The first with a learning rate: warm-up starts at 0."""
Batch = dict[str, Tensor]
Steps = list[list[Batch]]
"""Optimizer steps in their order, each with its micro-batches."""
Load = Callable[[nn.Module, Recorder], None]


@dataclass(frozen=True)
class Run:
    """What is simulated, besides the plan."""

    steps: Steps
    hidden: Hidden = no_hidden
    """What operations take besides their outputs (`cuda.hidden_of`)."""
    load: Load | None = load_checkpoint
    """Records how the weights come to the device; None: they are simply there."""
    evaluated: Batch | None = None
    """One held-out row, whose loss is computed after the steps."""
    form: str | None = None
    """How batches carry features (`models.features`); None where they carry pixels."""
    repeat: bool = False
    """Append the first step once more, as it is when the optimizer's states exist, without simulating it."""


def simulate(plan: RunPlan, run: Run) -> Log:
    """Return what training `plan` allocates; from the second step on the optimizer's states exist."""
    model = _built(plan, run.form).train()
    gc.freeze()  # what exists already need not be looked through after every step
    try:
        with collector_paused(), _meta_allowed(), kernels_of(plan):
            return record_steps(model, plan, run)
    finally:
        gc.unfreeze()


def _built(plan: RunPlan, form: str | None) -> nn.Module:
    """Return the model without weights, taking features of this form."""
    model = build_model(plan, weights="none")
    if form:
        serve_features(base_of(model), form)
    return model


@dataclass(frozen=True)
class Question:
    """What a tuned model is asked."""

    prompt: Batch
    form: str | None
    """As in `Run`."""


def simulate_answer(plan: RunPlan, question: Question, hidden: Hidden, num_tokens: int) -> Log:
    """Return what a tuned model allocates to read a prompt and to write this many tokens, each a phase of the log."""
    model = _built(plan, question.form).eval()
    recorder = Recorder(hidden)
    recorder.log.begin("load")
    load_checkpoint(model, recorder)
    recorder.log.events += [EMPTY_CACHE, RESET_PEAK]

    def next_token(ids: Tensor, scores: Tensor, **kwargs) -> Tensor:
        written = sum(name.startswith("token") for name, _ in recorder.log.phases)
        if written == num_tokens:
            recorder.stop()
            raise _Written
        recorder.log.begin(f"token {written + 1}")
        return torch.zeros(len(ids), dtype=torch.bool)

    with _meta_allowed(), kernels_of(plan), named_modules(model, recorder), recorder:
        recorder.log.begin("prompt")
        recorder.kind = "inputs"
        inputs = copied(question.prompt)
        recorder.kind = ACTIVATIONS
        with suppress(_Written):
            # The criterion ends it: values without storage never reach an end token or a comparison's yes.
            greedy(model, inputs, max_new_tokens=10**6, pad_token_id=0, stopping_criteria=[next_token])
    return recorder.log


class _Written(Exception):
    """As many tokens as wanted are written."""


def record_steps(model: nn.Module, plan: RunPlan, run: Run) -> Log:
    """Return what optimizer steps of `model` allocate, whether its tensors have storage or not."""
    recorder = Recorder(run.hidden)
    recorder.vocabulary = base_of(model).get_output_embeddings().out_features
    recorder.log.begin("load")
    if run.load is not None:
        run.load(model, recorder)
    add_residents(model, plan, recorder)
    recorder.log.events += [EMPTY_CACHE, RESET_PEAK]
    _first_step_check(model, recorder)
    with named_modules(model, recorder), recorder:
        optimizer = build_optimizer(model, plan)  # held to the end: the evaluation finds its states in memory
        _record_steps(model, plan, optimizer, run, recorder)
        if run.evaluated is not None:
            recorder.log.begin("evaluation")
            _evaluate(model, plan, run.evaluated, recorder)
    recorder.stop()
    return recorder.log


def add_residents(model: nn.Module, plan: RunPlan, recorder: Recorder) -> None:
    """Record the tensors that stay in memory for the whole run, by part and format."""
    family = family_of(plan)
    for name, tensor in _resident(base_of(model)):
        recorder.add(tensor, _kind_of(name, tensor, family))


def _record_steps(model: nn.Module, plan: RunPlan, optimizer: Optimizer, run: Run, recorder: Recorder) -> None:
    ends = [len(recorder.log.events)]
    for number, batches in enumerate(run.steps, 1):
        recorder.log.begin(f"step {number}")
        _forward_and_backward(model, plan, batches, recorder)
        _update(model, plan, optimizer, recorder)
        gc.collect()
        ends.append(len(recorder.log.events))
        if number == CHECKED_STEP:
            _first_step_check(model, recorder)
    if run.repeat:
        recorder.log.begin(f"step {len(run.steps) + 1}")
        repeat_step(recorder, *ends[:2])
        if len(run.steps) < CHECKED_STEP:
            _first_step_check(model, recorder)


def _forward_and_backward(model: nn.Module, plan: RunPlan, batches: list[Batch], recorder: Recorder) -> None:
    for batch in _without_repeats(batches):
        recorder.log.num_rows += len(batch["labels"])
        recorder.kind = "inputs"
        inputs = copied(batch)
        recorder.kind = ACTIVATIONS
        loss = forward_loss(model, inputs, plan, 1)  # labelled tokens; the real ones are counted in main memory
        del inputs  # as in the trainer
        recorder.kind = GRADIENTS
        loss.backward()


def _update(model: nn.Module, plan: RunPlan, optimizer: Optimizer, recorder: Recorder) -> None:
    recorder.kind = "optimizer"
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch.nn.utils.clip_grad_norm_(trainable, plan.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()


def _evaluate(model: nn.Module, plan: RunPlan, row: Batch, recorder: Recorder) -> None:
    recorder.kind = "inputs"
    inputs, flops = copied(row), recorder.log.flops
    recorder.kind = ACTIVATIONS
    with torch.no_grad():
        forward_loss(model.eval(), inputs, plan, num_items=1)
    model.train()
    recorder.log.flops = flops  # of the steps alone


def copied(batch: Batch) -> Batch:
    """Return a batch as it lies on the device."""
    return {key: value.clone() for key, value in batch.items()}


def _without_repeats(batches: list[Batch]) -> list[Batch]:
    """The batches that can change the peak: of a run of equal shapes the first two; the others repeat the second."""
    kept: list[Batch] = []
    for batch in batches:
        shapes = [{key: value.shape for key, value in other.items()} for other in (batch, *kept[-2:])]
        if len(shapes) < 3 or shapes[0] != shapes[1] or shapes[0] != shapes[2]:
            kept.append(batch)
    return kept


def _first_step_check(model: nn.Module, recorder: Recorder) -> None:
    """The check that no frozen tensor changes sums them a piece at a time, converted to int64 (engine/callbacks.py)."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            piece_bytes = min(parameter.untyped_storage().nbytes(), callbacks.DIGEST_BYTES)
            recorder.free(recorder.allocate(piece_bytes // 2 * torch.int64.itemsize, "checks", "sum"))


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
def kernels_of(plan: RunPlan):
    """Let tensors without storage take the paths that they would take on the plan's device."""
    autocast = autocast_of(plan.device) if plan.autocast_dtype else nullcontext()
    with attention_of(plan.device), composites_of(plan.device), autocast:
        yield


@contextmanager
def _meta_allowed():
    """Let optimizers run on tensors without storage: fused ones, and bitsandbytes', whose updates take no memory."""
    devices = FUSED_DEVICES.get()

    def no_update(*args, **kwargs) -> None:
        return None

    with (
        FUSED_DEVICES.replaced(lambda: [*devices(), "meta"]),
        bnb.UPDATE_8BIT.replaced(no_update),
        bnb.UPDATE_32BIT.replaced(no_update),
        bnb.GET_STATE_BUFFER.replaced(_state_buffer),
    ):
        yield


def _state_buffer(optimizer, parameter: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """An optimizer state; a paged one lies in managed memory, which the allocator never sees."""
    paged = optimizer.is_paged and parameter.numel() >= PAGED_MIN_NUMBERS
    return torch.empty(0 if paged else parameter.shape, dtype=dtype, device=parameter.device)


@contextmanager
def named_modules(model: nn.Module, recorder: Recorder):
    """Tell the recorder which module is at work."""
    handles = []

    def enter(name: str) -> Callable:
        def hook(module, args) -> None:
            recorder.module = name

        return hook

    for name, module in base_of(model).named_modules():
        if not list(module.children()):
            handles.append(module.register_forward_pre_hook(enter(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
