"""What a report says of several processes, each of which knows itself."""

import torch
from torch import nn

from vlmtune.engine.callbacks import digest
from vlmtune.engine.ranks import group
from vlmtune.runs.records import OneGpu


def facts_of_all(model: nn.Module) -> dict[str, list[OneGpu] | bool]:
    """Return what each process's GPU has taken, and whether all have learned the same; nothing where one is alone."""
    if group.size() == 1:
        return {}
    learned = [digest(parameter) for parameter in model.parameters() if parameter.requires_grad]
    told = group.gathered((learned, _gpu()))
    return {"gpus": [gpu for _, gpu in told if gpu], "gpus_agree": all(one == learned for one, _ in told)}


def _gpu() -> OneGpu | None:
    """Return what this process has taken; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    reserved, allocated = torch.cuda.max_memory_reserved(), torch.cuda.max_memory_allocated()
    return OneGpu(torch.cuda.get_device_name(0), reserved, allocated, group.COMMUNICATION.taken_bytes)
