"""The demo's losses with PEFT's forward, with lean adapters and in packs, step by step: `make demo-equal`.

Three seeds, 200 steps of 16 rows each, the same rows in each step. Lean adapters and packs round otherwise than PEFT's
forward and rows under each other, so that losses part by rounding alone. It fails where they part by more.
"""

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from exact_levers import SEEDS, trained_demo  # noqa: E402
from gpu.parted import parted  # noqa: E402

from vlmtune.demo.digits import write_digits  # noqa: E402
from vlmtune.runs.versions import library_versions  # noqa: E402

STEPS, ROWS_PER_STEP = 200, 16
MOST_MEAN, MOST = 1e-3, 2e-2
"""By how much losses may part, in the mean of the steps and in one."""
FIXED = {"training.max_steps": STEPS, "training.logging_steps": 1, "training.save_steps": 1000}
PACKS = {
    "training.packing": "true",
    "training.pack_tokens": 512,
    "training.batch_size": 1,
    "training.gradient_accumulation_steps": ROWS_PER_STEP,
}
RUNS = {
    "peft": {"hardware.lean_lora": "false"},
    "lean": {"hardware.lean_lora": "true"},
    "peft-packs": {"hardware.lean_lora": "false", **PACKS},
    "lean-packs": {"hardware.lean_lora": "true", **PACKS},
}
"""What each run sets; the others are held against the first."""


def trained(folder: Path, seed: int, kind: str) -> dict:
    """Return the losses of a run."""
    run = trained_demo(folder, f"{kind}-{seed}", {**FIXED, "training.seed": seed, **RUNS[kind]})
    of_steps = {record.step: record.loss for record in run.read_log()}  # the last step stands there twice
    return {"run": kind, "seed": seed, "losses": [*of_steps.values()]}


def main() -> int:
    """Print every run, write them to a file where one is named, and return 0 when losses are equal within rounding."""
    runs: list[dict] = []
    wrong = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        write_digits(folder)
        for seed in SEEDS:
            for kind in RUNS:
                runs.append(trained(folder, seed, kind))
                mean, most = parted(runs[-1], runs[-1 - list(RUNS).index(kind)])
                wrong |= mean > MOST_MEAN or most > MOST
                last = statistics.fmean(runs[-1]["losses"][-20:])
                print(f"seed {seed} {kind}: {last:.4f} at the end, parted {mean:.1e} in the mean, {most:.1e} at most")
                if sys.argv[1:]:
                    text = json.dumps({"versions": library_versions(), "runs": runs}, indent=1)
                    Path(sys.argv[1]).write_text(text + "\n", encoding="utf-8")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
