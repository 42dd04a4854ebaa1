"""What tensors without storage need to do what tensors on a device do: its kernels' paths, and optimizers that run."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from vlmtune.compat import bitsandbytes as bnb
from vlmtune.compat.torch import FOREACH_DEVICES, FUSED_DEVICES
from vlmtune.compat.transformers import SAVE_ON_CPU
from vlmtune.estimate.simulate.attention import attention_of
from vlmtune.estimate.simulate.autocast import autocast_of
from vlmtune.estimate.simulate.composites import composites_of
from vlmtune.plan.types import RunPlan

PAGED_MIN_NUMBERS = 100_000


@contextmanager
def as_on_device(plan: RunPlan) -> Iterator[None]:
    """Let tensors without storage take the paths that they would take on the plan's device."""
    autocast = autocast_of(plan.device) if plan.autocast_dtype else nullcontext()
    with _meta_allowed(), _pinned_allowed(), attention_of(plan.device), composites_of(plan.device), autocast:
        yield


def _pinned_allowed() -> AbstractContextManager:
    """Let what leaves the card be pinned: without a GPU nothing is, but a recorder knows main memory by that."""
    save_on_cpu = SAVE_ON_CPU.get()
    return SAVE_ON_CPU.replaced(lambda pin_memory, device_type: save_on_cpu(pin_memory, device_type="cpu"))


@contextmanager
def _meta_allowed() -> Iterator[None]:
    """Let optimizers run: fused ones, and bitsandbytes', whose updates take no memory.

    The norm of all gradients is computed in one operation, as on a GPU.
    """
    fused, foreach = FUSED_DEVICES.get(), FOREACH_DEVICES.get()

    def no_update(*args, **kwargs) -> None:
        return None

    with (
        FUSED_DEVICES.replaced(lambda: [*fused(), "meta"]),
        FOREACH_DEVICES.replaced(lambda: [*foreach(), "meta"]),
        bnb.UPDATE_8BIT.replaced(no_update),
        bnb.UPDATE_32BIT.replaced(no_update),
        bnb.GET_STATE_BUFFER.replaced(_state_buffer),
    ):
        yield


def _state_buffer(optimizer, parameter: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """An optimizer state; a paged one lies in managed memory, which the allocator never sees."""
    paged = optimizer.is_paged and parameter.numel() >= PAGED_MIN_NUMBERS
    return torch.empty(0 if paged else parameter.shape, dtype=dtype, device=parameter.device)
