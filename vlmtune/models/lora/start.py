"""A run that starts from an adapter: it fits the model, and its numbers take the place of new ones."""

import re
from pathlib import Path

from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

from vlmtune.errors import VlmtuneError
from vlmtune.hub.adapters import KEY, open_adapter
from vlmtune.models.verify import refuse_other_base
from vlmtune.plan.types import RunPlan
from vlmtune.runs.adapter import WEIGHTS


def refuse_other(base: nn.Module, plan: RunPlan) -> None:
    """Raise unless the adapter to start from is on the very layers of a base that the plan puts adapters on."""
    folder = Path(plan.adapter)
    refuse_other_base(base, folder, plan.lora_rank)
    wanted = {
        name
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(plan.lora_targets, name)
    }
    if absent := sorted(wanted - set(open_adapter(folder).modules)):
        raise VlmtuneError(
            f"{KEY}: {folder} lacks {len(absent)} of the {len(wanted)} layers that it would be on, such as {absent[0]}",
            "it is another model's, or on some layers only: merge it, and give the result as model.name",
        )


def load_start(model: PeftModel, plan: RunPlan) -> None:
    """Put the numbers of the adapter to start from in the place of new ones; they keep the format of those."""
    found = set_peft_model_state_dict(model, load_file(Path(plan.adapter) / WEIGHTS))
    assert not found.unexpected_keys, f"the adapter has {found.unexpected_keys[0]}, which refuse_other let pass"
