"""Counts what a training step of vlmtune and of TRL computes, without a GPU: `make bench`.

    python tests/bench/beside_trl.py FOLDER_WITH_TRL

Tiny models in full precision, the same rows, adapters on the same layers, activations recomputed by both. Counted in
the second step: FLOPs of products and attention, and the kernels that operations would launch on a card. What differs
on a card is not seen: adapters in 4-bit layers, and that TRL scores all positions on a CPU and only answers there.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForImageTextToText, TrainerCallback

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/bench")]
from gpu.features import write_rows  # noqa: E402
from gpu.peers import Offer, Run, Trl  # noqa: E402
from gpu.side_by_side import Vlmtune  # noqa: E402
from operations import launches_of  # noqa: E402
from tiny import save_tiny  # noqa: E402

from vlmtune.estimate.simulate.outputs import tensors_in  # noqa: E402
from vlmtune.estimate.simulate.record import FLOPS_OF  # noqa: E402
from vlmtune.estimate.timing.operations import Ledger  # noqa: E402

ROWS_PER_STEP, COUNTED = 8, 1
TOOLS = ("trl", "vlmtune")
PICTURE_PX, CHARS = (112, 84), (20, 60)
ON_CPU = {"training.method": "lora", "training.optim": "adamw", "data.max_length": 4096}
PACKED = {**ON_CPU, "training.packing": True, "training.pack_tokens": 4096}
LEAST = {"qwen2_5_vl": (1.3, 1.7, 1.6), "smolvlm": (1.35, 1.55, 1.8)}
"""By family, how many times vlmtune's FLOPs and launches TRL must need at least, row by row, and how many times the
launches with a step's rows in one batch or pack."""


class Count(TorchDispatchMode):
    """Counts FLOPs and kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.ledger = 0, Ledger()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out, flops = operation(*args, **(kwargs or {})), 0
        if formula := FLOPS_OF.get(operation.overloadpacket):
            flops = formula(*args, **(kwargs or {}), out_val=out)
        self.ledger.note(operation, args, tensors_in((args, kwargs)), out, flops)
        self.flops += flops
        return out


class Counting(TrainerCallback):
    """Counts one step."""

    def __init__(self) -> None:
        self.count = Count()

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == COUNTED:
            self.count.__enter__()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == COUNTED + 1:
            self.count.__exit__(None, None, None)

    def figures(self) -> dict:
        """Return what a row took."""
        launches = launches_of(self.count.ledger.kernels)
        return {"mflop": self.count.flops / ROWS_PER_STEP / 1e6, "launches": launches / ROWS_PER_STEP}


class TrlOnCpu(Trl):
    """TRL with the base in full precision."""

    def load(self) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(self.asked.model, dtype=torch.float32)

    def arguments(self, batch: int, accumulation: int) -> dict:
        """Return what is said on a card, for a CPU."""
        return super().arguments(batch, accumulation) | {"optim": "adamw_torch", "bf16": False, "use_cpu": True}


def counted(folder: str, tool: str) -> list[dict]:
    """Train in this process row by row, then a step's rows at once; return what a row of the counted steps took."""
    offers: list[Offer] = [{"batch": 1}, {"batch": ROWS_PER_STEP}] if tool == "trl" else [ON_CPU, PACKED]
    trainer = (TrlOnCpu if tool == "trl" else Vlmtune)(Run(tool, folder, "rows", ROWS_PER_STEP, tuple(offers)))
    found = []
    for offer in offers:
        counting = Counting()
        trained = trainer.train(offer, counting, lambda: None)
        found.append(counting.figures() | {"trainable": trained["trainable"]})
    return found


def in_its_own_process(folder: Path, tool: str, libraries: str) -> list[dict]:
    """Count in a process of its own: TRL's libraries are seen by TRL alone."""
    paths = [libraries] * (tool == "trl") + [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, __file__, "--one", str(folder), tool], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def main(libraries: str) -> int:
    """Print the table; return 1 if TRL needs less than it must beside vlmtune."""
    table, wrong = Table("model", "", "MFLOP a row", "launches a row"), False
    for family, least in LEAST.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            save_tiny(family, folder / family / "model")
            write_rows(folder / "rows.jsonl", 3 * ROWS_PER_STEP, PICTURE_PX, CHARS)
            (trl, trl_at_once), (ours, packed) = (
                in_its_own_process(folder / family, tool, libraries) for tool in TOOLS
            )
        shown = {"TRL": trl, f"TRL, {ROWS_PER_STEP} rows at once": trl_at_once, "vlmtune": ours, "in packs": packed}
        for said, run in shown.items():
            table.add_row(family, said, f"{run['mflop']:.1f}", f"{run['launches']:.0f}")
        ratios = [(trl, ours, "mflop"), (trl, ours, "launches"), (trl_at_once, packed, "launches")]
        wrong |= any(peer[what] / own[what] < bound for (peer, own, what), bound in zip(ratios, least, strict=True))
        wrong |= len({run["trainable"] for run in shown.values()}) > 1
    Console().print(table)
    return int(wrong)


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        print(json.dumps(counted(*sys.argv[2:4])))
    else:
        sys.exit(main(sys.argv[1]))
