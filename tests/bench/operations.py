"""Counts the kernels that a training step launches, without a GPU.

    python tests/bench/operations.py

Qwen2.5-VL-3B at its real size without weights, one row of a page (1120×840 px, 300 characters), as on a card. What an
operation launches is what predicted time is made of (`vlmtune/estimate/timing`).
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu.cases import QWEN25_3B, Case  # noqa: E402
from gpu.compare import prepared  # noqa: E402

from vlmtune.estimate.timing.kernels import Kernels  # noqa: E402
from vlmtune.estimate.timing.predict import COPIES, spent  # noqa: E402
from vlmtune.estimate.timing.rates import Rates  # noqa: E402
from vlmtune.hardware.cards import find_card  # noqa: E402

PAGE_PX, CHARS = (1120, 840), 300
CARD = "h100"
"""Some products are two kernels on one card and one on another."""


def launches_of(kernels: Kernels) -> int:
    """Return how many kernels are launched, copies by the driver left out."""
    return round(spent(kernels, Rates(find_card(CARD))).launches)


def count(model: str, settings: dict) -> dict:
    """Return what a row's passes and an optimizer update launch."""
    settings = {"training.max_steps": 2, "training.gradient_accumulation_steps": 2, **settings}
    with tempfile.TemporaryDirectory() as folder:
        log = prepared(Case("count", model, CHARS, PAGE_PX, settings=settings), Path(folder) / "case").log()
    row = log.batches[-1].images + log.batches[-1].tokens
    kinds = Counter()
    for kernel, times in row.items():
        kinds[kernel.kind] += times * (kernel.kind not in COPIES)
    return {"row": launches_of(row), "update": launches_of(log.updates[-1]), "kinds": dict((+kinds).most_common())}


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
