"""What processes on several machines have read for themselves must be the same: it is looked at before the first step.

The first process raises; the others find it gone, and leave the word to it.
"""

import socket

from torch import nn
from transformers import TrainerCallback

from vlmtune.engine.callbacks import digest
from vlmtune.engine.ranks import group
from vlmtune.errors import VlmtuneError
from vlmtune.models.build import base_of
from vlmtune.models.layers.shards import shards_of
from vlmtune.runs.folder import RunFolder

SAMPLED_NUMBERS = 2**12
"""Of each tensor."""


def refuse_unseen(folder: RunFolder) -> None:
    """Raise in the first process where another one does not see the run folder: it could write no checkpoint with it.

    To be called by all.
    """
    if group.size() == 1:
        return
    for number, (host, sees) in enumerate(group.gathered((socket.gethostname(), folder.plan.is_file()))):
        if not sees and group.is_first():
            raise VlmtuneError(
                f"process {number} on {host} does not find the run folder {folder.path} of process 0 on "
                f"{socket.gethostname()}",
                "output_dir must lie on a disk that all machines share, under the same name; they must start in the "
                "same folder, or it must be given in full",
            )


class SameNumbers(TrainerCallback):
    """All processes begin with the same weights, frozen ones too; looked at when checkpoints are loaded."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if group.size() == 1:
            return
        own = _numbers_of(self.model)
        for number, (host, theirs) in enumerate(group.gathered((socket.gethostname(), own))):
            if (different := [name for name in own if theirs.get(name) != own[name]]) and group.is_first():
                raise VlmtuneError(
                    f"process {number} on {host} has loaded other numbers than process 0 on {socket.gethostname()}: "
                    f"{len(different)} tensors differ, such as {different[0]}",
                    "the model's files, an adapter that the run starts from and checkpoints must be the same on all "
                    "machines",
                )


def _numbers_of(model: nn.Module) -> dict[str, int]:
    """Return a digest of the first numbers of each tensor; of shared layers it was compared when they were loaded."""
    base = base_of(model)
    shards = shards_of(base)
    shared = {id(linear.weight) for linear in shards.places} if shards else ()
    return {
        name: digest(parameter.detach().reshape(-1)[:SAMPLED_NUMBERS])
        for name, parameter in base.named_parameters()
        if id(parameter) not in shared
    }
