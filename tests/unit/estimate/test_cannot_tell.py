"""What torch says of tensors without storage is told from every other error, on each supported version."""

import numpy as np
import pytest
import torch
from torchvision.ops import nms

from vlmtune.errors import ExitCode
from vlmtune.estimate.cannot_tell import CannotSimulate, cannot_tell, needs_storage

META, REAL = torch.empty(4, 4, device="meta"), torch.ones(4, 4)
REFUSED = {
    "item": lambda: META[0, 0].item(),
    "truth": lambda: bool(META[0, 0] > 0),
    "list": lambda: META.tolist(),
    "numpy": lambda: np.asarray(META),
    "copy": lambda: META.cpu(),
    "copy into": lambda: REAL.clone().copy_(META),
    "move": lambda: torch.nn.Linear(2, 2, device="meta").to("cpu"),
    "nonzero": lambda: META.nonzero(),
    "mask": lambda: META[META > 0],
    "no kernel": lambda: torch.unique(META),
    "two devices": lambda: torch.cat([META, REAL]),
    "size by value": lambda: torch.repeat_interleave(META, META[0].long(), 0),
    "boxes": lambda: nms(META, META[0], 0.5),
    "dlpack": lambda: torch.utils.dlpack.to_dlpack(META),
    "storage": lambda: META.untyped_storage()[0],
}


@pytest.mark.parametrize("operation", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_without_storage(operation):
    with pytest.raises(Exception) as raised:
        operation()
    assert needs_storage(raised.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.20 GiB."),
        torch.utils.checkpoint.CheckpointError("Recomputed values have different metadata than in the forward pass"),
        RuntimeError("The size of tensor a (64) must match the size of tensor b (4)"),
        NotImplementedError("no such method"),
        KeyError("meta"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_other_error_stays_what_it_is(models, error):
    with pytest.raises(type(error)) as raised, cannot_tell(models("llava").plan):
        raise error
    assert raised.value is error


def test_wrong_sizes_on_meta_are_a_bug():
    with pytest.raises(RuntimeError) as raised:
        META @ META[:3]
    assert not needs_storage(raised.value)


def test_the_message_is_the_first_sentence_and_has_its_own_exit_code(models):
    with pytest.raises(CannotSimulate) as raised, cannot_tell(models("llava").plan):
        torch.unique(META)
    assert raised.value.code == ExitCode.CANNOT_TELL
    assert raised.value.message.endswith(" there was no fake impl or Meta kernel registered)")
