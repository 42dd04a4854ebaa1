"""From a step's first layer on the processor reads nothing back from the card: it hands over what comes in advance.

On a CPU, what would make it wait is told by the operations: numbers that are read, and sizes that depend on numbers.
"""

import pytest
import torch
from tiny import TINY
from tiny.rows import built, colour_rows, tiny_plan
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vlmtune.data.batches.packs import collate_of
from vlmtune.data.collate import WHERE, Collator
from vlmtune.data.dataset import TuneDataset
from vlmtune.engine.step import forward_loss, ready
from vlmtune.levers.recompute import layers_of
from vlmtune.models.build import base_of

aten = torch.ops.aten
READING = {aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.masked_select, aten.nonzero, aten._unique2}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class Waits(TorchDispatchMode):
    """Notes the operations that wait, once it is `on`."""

    def __init__(self) -> None:
        super().__init__()
        self.is_on, self.found, self.num_operations = False, [], 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kind = operation.overloadpacket
        by_mask = kind in INDEXING and any(isinstance(one, Tensor) and one.dtype == torch.bool for one in args[1])
        self.num_operations += self.is_on
        if self.is_on and (kind in READING or by_mask):
            self.found.append(str(operation))
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("name", sorted(TINY))
def test_nothing_is_read_back_from_the_first_layer_on(name, packing, models, tmp_path):
    if packing and name == "instructblip":
        pytest.skip("its rows are not packed")
    tiny = models(name)
    plan = tiny_plan(tiny.folder, training={"packing": packing})
    rows = TuneDataset(colour_rows(tmp_path, 2), tiny.processor, tiny.family, plan)
    batch = collate_of(plan, Collator(tiny.processor))([*rows])
    model, waits = built(plan), Waits()
    first = layers_of(base_of(model), tiny.family)[0]
    first.register_forward_pre_hook(lambda *_: setattr(waits, "is_on", True))
    batch = ready(base_of(model), {key: value for key, value in batch.items() if key != WHERE})
    with waits:
        forward_loss(model, batch, plan, num_items=7).backward()
    assert waits.found == []
    assert waits.num_operations > 100
