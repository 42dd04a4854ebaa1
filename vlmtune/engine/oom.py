"""An allocation that failed: what was held and at which row, and how the memory becomes free again."""

import gc

import torch

from vlmtune.errors import VlmtuneError
from vlmtune.units import GIB

WITHOUT_ESTIMATE = "smaller pictures (data.image_size), shorter texts (data.max_length) or a smaller model take less"


class OutOfMemory(VlmtuneError):
    """The card had no memory for a run; `available_bytes` is what the process could have had of it in all."""

    def __init__(self, headline: str, details: str, available_bytes: int) -> None:
        super().__init__(f"{headline}: {details}", WITHOUT_ESTIMATE)
        self.headline = headline
        self.details = details
        self.available_bytes = available_bytes

    def __reduce__(self) -> tuple:
        return OutOfMemory, (self.headline, self.details, self.available_bytes)

    def without_traceback(self) -> "OutOfMemory":
        """Return the same error without what it was raised from: tracebacks keep the model in memory."""
        return OutOfMemory(self.headline, self.details, self.available_bytes)


def out_of_memory(error: BaseException, where: str) -> OutOfMemory:
    """Return the user's error for an allocation that failed; `where` says at which rows or doing what."""
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    total = torch.cuda.get_device_properties(0).total_memory
    free, _ = torch.cuda.mem_get_info()
    allowed = int(total * torch.cuda.get_per_process_memory_fraction())
    first_line = str(error).splitlines()[0]
    return OutOfMemory(
        f"out of GPU memory {where}",
        f"{allocated / GIB:.2f} GiB in tensors, {reserved / GIB:.2f} GiB reserved, card {total / GIB:.2f} GiB. "
        f"{first_line}",
        min(reserved + free, allowed),
    )


def free_memory() -> None:
    """Give the card back what a failed run held; the caller must have dropped the run's error."""
    gc.collect()  # the trainer and what watches it know each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
