"""An out-of-memory error as the user needs it: what was held, at which row, and what to change in which order."""

import torch

from vlmtune.errors import VlmtuneError
from vlmtune.plan import RunPlan

GIB = 2**30


def out_of_memory(error: BaseException, plan: RunPlan, where: list[str], batch: dict) -> VlmtuneError:
    """Return the user's error for an allocation that failed while training on the rows `where`."""
    allocated, reserved = torch.cuda.memory_allocated() / GIB, torch.cuda.memory_reserved() / GIB
    total = torch.cuda.get_device_properties(0).total_memory / GIB
    tokens = "×".join(str(size) for size in batch["labels"].shape)
    first_line = str(error).splitlines()[0]
    return VlmtuneError(
        f"out of GPU memory at rows {', '.join(where)} ({tokens} tokens): {allocated:.2f} GiB in tensors, "
        f"{reserved:.2f} GiB reserved, card {total:.2f} GiB. {first_line}",
        "change in this order: " + "; ".join(remedies(plan)),
    )


def remedies(plan: RunPlan) -> list[str]:
    """Return the `--set` words that save memory, the ones that cost nothing in quality first."""
    doubled = plan.gradient_accumulation_steps * plan.batch_size
    words = [
        (not plan.gradient_checkpointing, "--set hardware.gradient_checkpointing=true"),
        (plan.batch_size > 1, f"--set training.batch_size=1 --set training.gradient_accumulation_steps={doubled}"),
        (plan.method == "lora", "--set training.method=qlora"),
        (plan.method == "full", "--set training.method=lora"),
        (plan.optimizer == "adamw", "--set training.optim=paged_adamw_8bit"),
        (plan.image_size is None or plan.image_size > 336, f"--set data.image_size={_smaller(plan.image_size)}"),
        (plan.max_length > 256, f"--set data.max_length={plan.max_length // 2} --set data.truncation=cut"),
        (plan.lora_rank > 4 and plan.method != "full", f"--set training.lora.rank={plan.lora_rank // 2}"),
    ]
    return [text for applies, text in words if applies] + ["a smaller model"]


def _smaller(image_size: int | None) -> int:
    return max(336, (image_size or 1024) * 3 // 4)
