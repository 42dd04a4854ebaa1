"""Where nobody can tell what a model takes: its step does what cannot be done without storage."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from vlmtune.errors import ExitCode, VlmtuneError
from vlmtune.plan.types import RunPlan

TYPES = (BufferError, NotImplementedError, RuntimeError, TypeError)
"""What torch raises where an operation needs the numbers of a tensor that has none: the types of any bug."""
ON_META = re.compile(r"\bmeta\b|register_meta", re.IGNORECASE)
"""Not `metadata`, of which checkpointing speaks when recomputing goes wrong."""


class CannotSimulate(VlmtuneError):
    """A step that cannot be run without storage."""

    def __init__(self, plan: RunPlan, reason: str) -> None:
        super().__init__(
            f"cannot tell: the step of {plan.model_name} cannot be run without storage ({reason})",
            "please report the model and the config",
            code=ExitCode.CANNOT_TELL,
        )


@contextmanager
def cannot_tell(plan: RunPlan) -> Iterator[None]:
    """Raise CannotSimulate where a step cannot be run without storage; any other error is a bug and stays as it is."""
    try:
        yield
    except TYPES as error:
        if not needs_storage(error):
            raise
        raise CannotSimulate(plan, str(error).splitlines()[0].partition(". ")[0]) from error


def needs_storage(error: Exception) -> bool:
    """Return whether torch refused an operation because a tensor is on the meta device.

    Told by its words, in torch 2.11 and 2.15: `Tensor.item() cannot be called on meta tensors`, `Cannot copy out of
    meta tensor; no data!`, `attempted to run this operator with Meta tensors`, `Tensor on device cpu is not on the
    expected device meta!`.
    """
    return isinstance(error, TYPES) and ON_META.search(str(error)) is not None
