"""What tensors without storage need to do what tensors on a device do: its kernels' paths, and optimizers that run."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import torch
from torch import Tensor

from vlmtune.estimate.simulate.attention import attention_of
from vlmtune.estimate.simulate.autocast import autocast_of
from vlmtune.estimate.simulate.composites import composites_of
from vlmtune.plan.types import RunPlan

PAGED_MIN_NUMBERS = 100_000


@contextmanager
def as_on_device(plan: RunPlan) -> Iterator[None]:
    """Let tensors without storage take the paths that they would take on the plan's device."""
    autocast = autocast_of(plan.device) if plan.autocast_dtype else nullcontext()
    with _meta_allowed(), attention_of(plan.device), composites_of(plan.device), autocast:
        yield


@contextmanager
def _meta_allowed() -> Iterator[None]:
    """Let optimizers run: fused ones, and bitsandbytes', whose updates take no memory.

    The norm of all gradients is computed in one operation, as on a GPU.
    """
    from bitsandbytes import functional
    from bitsandbytes.optim.optimizer import Optimizer8bit
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    fused = optimizer._get_fused_kernels_supported_devices
    foreach = _foreach_utils._get_foreach_kernels_supported_devices

    def no_update(*args, **kwargs) -> None:
        return None

    with (
        patch.object(optimizer, "_get_fused_kernels_supported_devices", lambda: [*fused(), "meta"]),
        patch.object(_foreach_utils, "_get_foreach_kernels_supported_devices", lambda: [*foreach(), "meta"]),
        patch.object(functional, "optimizer_update_8bit_blockwise", no_update),
        patch.object(functional, "optimizer_update_32bit", no_update),
        patch.object(Optimizer8bit, "get_state_buffer", _state_buffer),
    ):
        yield


def _state_buffer(optimizer, parameter: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """An optimizer state; a paged one lies in managed memory, which the allocator never sees."""
    paged = optimizer.is_paged and parameter.numel() >= PAGED_MIN_NUMBERS
    return torch.empty(0 if paged else parameter.shape, dtype=dtype, device=parameter.device)
