"""An out-of-memory error as the user needs it: what was held, at which row, and what to change in which order."""

import torch

from vlmtune.errors import VlmtuneError
from vlmtune.models.build import family_of
from vlmtune.plan import RunPlan

GIB = 2**30
SMALL_IMAGE_PX = 336
LARGE_IMAGE_PX = 1024


def out_of_memory(error: BaseException, plan: RunPlan, where: str) -> VlmtuneError:
    """Return the user's error for an allocation that failed; `where` says at which rows or doing what."""
    allocated, reserved = torch.cuda.memory_allocated() / GIB, torch.cuda.memory_reserved() / GIB
    total = torch.cuda.get_device_properties(0).total_memory / GIB
    first_line = str(error).splitlines()[0]
    return VlmtuneError(
        f"out of GPU memory {where}: {allocated:.2f} GiB in tensors, "
        f"{reserved:.2f} GiB reserved, card {total:.2f} GiB. {first_line}",
        "change in this order: " + "; ".join(remedies(plan)),
    )


def remedies(plan: RunPlan) -> list[str]:
    """Return the `--set` words that save memory, the ones that cost nothing in quality first."""
    accumulated = plan.gradient_accumulation_steps * plan.batch_size
    words = [
        (not plan.gradient_checkpointing, "--set hardware.gradient_checkpointing=true"),
        (plan.batch_size > 1, f"--set training.batch_size=1 --set training.gradient_accumulation_steps={accumulated}"),
        (plan.optimizer == "adamw", "--set training.optim=paged_adamw_8bit"),
        (plan.method == "lora", "--set training.method=qlora --set training.quantization.load_in_4bit=true"),
        (plan.method == "full", _adapters_only(plan)),
        (_smaller_images(plan) is not None, f"--set data.image_size={_smaller_images(plan)}"),
        (plan.max_length > 256, f"--set data.max_length={plan.max_length // 2} --set data.truncation=cut"),
        (plan.lora_rank > 4 and plan.method != "full", f"--set training.lora.rank={plan.lora_rank // 2}"),
    ]
    return [text for applies, text in words if applies] + ["a smaller model"]


def _adapters_only(plan: RunPlan) -> str:
    """Adapters contradict the keys that let method full train more than the language model."""
    keys = {"vision": "freeze_vision_tower", "projector": "freeze_projector"}
    frozen = [f" --set training.{key}=true" for part, key in keys.items() if part in plan.trainable_parts]
    return "--set training.method=lora" + "".join(frozen)


def _smaller_images(plan: RunPlan) -> int | None:
    """Return the next smaller data.image_size; None where that would change nothing, or images are small already."""
    has_fixed_input = not family_of(plan).image_settings({}, {}, SMALL_IMAGE_PX).overrides
    if has_fixed_input or (plan.image_size or LARGE_IMAGE_PX) <= SMALL_IMAGE_PX:
        return None
    return max(SMALL_IMAGE_PX, (plan.image_size or LARGE_IMAGE_PX) * 3 // 4)
