"""Counts the operations of a training step without a GPU: what launches a kernel or more on a card.

    python tests/bench/operations.py

Qwen2.5-VL-3B at its real size without weights, one row of a page (1120×840 px, 300 characters), as on a card. An
operation that only looks at memory in another way, or takes some, launches nothing; a product with a packed weight
launches four (constants, offset, weight, product). What a kernel's own library launches beside that is not seen.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu.cases import QWEN25_3B, Case  # noqa: E402
from gpu.compare import prepared  # noqa: E402

from vlmtune.compat.torch import OPERATION_SCHEMA, STORAGE_ADDRESS  # noqa: E402
from vlmtune.estimate.simulate import simulation  # noqa: E402
from vlmtune.estimate.simulate.outputs import tensors_in  # noqa: E402
from vlmtune.estimate.simulate.record import OPTIMIZER, PRODUCT_4BIT, Recorder  # noqa: E402

PRODUCT_LAUNCHES = 4
PADDED, PADDED_LAUNCHES = torch.ops.aten.constant_pad_nd.default, 2  # one fills, one copies
ONLY_MEMORY = ("aten.empty", "aten.new_empty", "aten.detach", "aten._local_scalar", "aten.lift_fresh")
PAGE_PX, CHARS = (1120, 840), 300


class Counting(Recorder):
    """Counts launches, those of passes and those of optimizer updates apart."""

    launches: dict[bool, Counter] = {}

    def _run(self, operation, args: tuple, kwargs: dict, *rest):
        out = super()._run(operation, args, kwargs, *rest)
        if self.log.phases[-1][0].startswith("step"):
            name = f"backward {operation}" if torch._C._current_graph_task_id() != -1 else str(operation)
            counter = self.launches.setdefault(self.kind == OPTIMIZER, Counter())
            counter[name] += launches_of(operation, args, kwargs, out)
        return out


def launches_of(operation, args: tuple, kwargs: dict, out) -> int:
    """Return how many kernels an operation launches, about."""
    if operation is PRODUCT_4BIT.default:
        return PRODUCT_LAUNCHES
    if operation is PADDED:
        return PADDED_LAUNCHES
    if str(operation).startswith(ONLY_MEMORY):
        return 0
    if OPERATION_SCHEMA.read(operation).is_mutable:
        return 1
    given = {STORAGE_ADDRESS.read(tensor.untyped_storage()) for tensor in tensors_in((args, kwargs))}
    made = [STORAGE_ADDRESS.read(tensor.untyped_storage()) for tensor in tensors_in(out)]
    return int(not made or any(address not in given for address in made))


def count(model: str, settings: dict) -> dict:
    """Return what a row's passes and an optimizer update launch."""
    Counting.launches = {}
    simulation.Recorder = Counting
    settings = {"training.max_steps": 2, "training.gradient_accumulation_steps": 2, **settings}
    with tempfile.TemporaryDirectory() as folder:
        made = prepared(Case("count", model, CHARS, PAGE_PX, settings=settings), Path(folder) / "case")
        log = made.log()
    row = sum(Counting.launches[False].values()) / log.num_batches
    update = sum(Counting.launches[True].values()) / 2
    most = Counting.launches[False].most_common(25)
    return {"row": round(row), "update": round(update), "most": {k: round(v / log.num_batches) for k, v in most}}


def main() -> None:
    """Print both counts of PEFT's forward and of the lean one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=QWEN25_3B, help="folder in the catalogue")
    parser.add_argument("--lean", type=json.loads, nargs="+", default=[False, True])
    parser.add_argument("--set", type=_setting, nargs="+", default=[], help="other values of the config: KEY=VALUE")
    asked = parser.parse_args()
    for lean in asked.lean:
        settings = {**dict(asked.set), "hardware.lean_lora": lean}
        print(json.dumps({**settings, **count(asked.model, settings)}, indent=1), flush=True)


def _setting(word: str) -> tuple[str, object]:
    key, value = word.split("=")
    return key, json.loads(value)


if __name__ == "__main__":
    main()
