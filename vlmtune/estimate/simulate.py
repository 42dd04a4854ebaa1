"""The trainer's own step, run without weights: build, loss, backward, optimizer; what it allocates is recorded."""

import gc
from collections.abc import Callable
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vlmtune.engine import callbacks
from vlmtune.engine.optim import build_optimizer
from vlmtune.engine.step import IGNORED, forward_loss
from vlmtune.estimate.allocator import EMPTY_CACHE, RESET_PEAK
from vlmtune.estimate.attention import attention_of
from vlmtune.estimate.load import load_checkpoint
from vlmtune.estimate.record import Hidden, Log, Recorder, no_hidden
from vlmtune.models.build import base_of, build_model, family_of
from vlmtune.plan import RunPlan

PAGED_MIN_NUMBERS = 100_000
CHECKED_STEP = 2
"""The first with a learning rate: warm-up starts at 0."""
Steps = list[list[dict[str, Tensor]]]
"""Optimizer steps in their order, each with its micro-batches."""
Load = Callable[[nn.Module, Recorder], None]


def simulate(plan: RunPlan, steps: Steps, hidden: Hidden, load: Load | None = None) -> Log:
    """Return what training `plan` for these steps allocates; from the second step on the optimizer's states exist.

    Args:
        hidden: what operations take besides their outputs (`cuda.hidden_of`).
        load: records how the weights come to the device; by default as from a checkpoint.
    """
    model = build_model(plan, weights="none").train()
    with _meta_allowed(), attention_of(plan.device):
        return record_steps(model, plan, steps, hidden, load or load_checkpoint)


def record_steps(
    model: nn.Module, plan: RunPlan, steps: Steps, hidden: Hidden = no_hidden, load: Load | None = None
) -> Log:
    """Return what optimizer steps of `model` allocate, whether its tensors have storage or not."""
    recorder = Recorder(hidden)
    if load is not None:
        load(model, recorder)
    family = family_of(plan)
    for name, tensor in _resident(base_of(model)):
        recorder.add(tensor, f"weights: {_kind_of(name, tensor, family)}")
    recorder.log.events += [EMPTY_CACHE, RESET_PEAK]
    _first_step_check(model, recorder)
    optimizer = build_optimizer(model, plan)
    # The trainer moves all batches of a step to the device at once, while it still holds those of the step before.
    held: list[dict[str, Tensor]] = []
    with _named_modules(model, recorder), recorder:
        for number, batches in enumerate(steps, 1):
            recorder.log.mark(f"step {number}")
            recorder.kind = "inputs"
            held = [{key: value.clone() for key, value in batch.items()} for batch in batches]
            _optimizer_step(model, plan, held, optimizer, recorder)
            if number == CHECKED_STEP:
                _first_step_check(model, recorder)
            gc.collect()
    return recorder.log


def _optimizer_step(
    model: nn.Module, plan: RunPlan, batches: list[dict[str, Tensor]], optimizer: Optimizer, recorder: Recorder
) -> None:
    num_items = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)
    for batch in _different(batches):
        recorder.log.num_rows += len(batch["labels"])
        recorder.kind = "saved activations"
        loss = forward_loss(model, batch, plan, num_items)
        recorder.kind = "recomputation and gradients"
        loss.backward()
    recorder.kind = "optimizer"
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch.nn.utils.clip_grad_norm_(trainable, plan.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()


def _different(batches: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The batches that can change the peak: of a run of equal shapes the first two; the others repeat the second."""
    kept: list[dict[str, Tensor]] = []
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
        state = getattr(tensor, "quant_state", None)
        for constant in _constants(state):
            yield name, constant


def _constants(state) -> list[Tensor]:
    if state is None:
        return []
    nested = [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
    return [state.absmax, state.code, *nested]


def _kind_of(name: str, tensor: Tensor, family) -> str:
    part = family.part_of(name)
    if ".lora_" in name:
        return f"{part} adapters"
    return f"{part} {'4-bit' if tensor.dtype == torch.uint8 else str(tensor.dtype).removeprefix('torch.')}"


@contextmanager
def _meta_allowed():
    """Let optimizers run on tensors without storage: fused ones, and bitsandbytes', whose updates take no memory."""
    from bitsandbytes import functional
    from bitsandbytes.optim.optimizer import Optimizer8bit
    from torch.optim import optimizer

    devices = optimizer._get_fused_kernels_supported_devices

    def no_update(*args, **kwargs) -> None:
        return None

    with (
        patch.object(optimizer, "_get_fused_kernels_supported_devices", lambda: [*devices(), "meta"]),
        patch.object(functional, "optimizer_update_8bit_blockwise", no_update),
        patch.object(functional, "optimizer_update_32bit", no_update),
        patch.object(Optimizer8bit, "get_state_buffer", _state_buffer),
    ):
        yield


def _state_buffer(optimizer, parameter: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """An optimizer state; a paged one lies in managed memory, which the allocator never sees."""
    paged = optimizer.is_paged and parameter.numel() >= PAGED_MIN_NUMBERS
    return torch.empty(0 if paged else parameter.shape, dtype=dtype, device=parameter.device)


@contextmanager
def _named_modules(model: nn.Module, recorder: Recorder):
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
