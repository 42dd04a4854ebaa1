"""The demo with every exact memory lever, beside the demo without: `make demo-levers`.

Three seeds; the adapters must be the same to the bit and so must the answers. On a CPU activations are in main memory
anyway; on a GPU they are offloaded too. Layers are not streamed: the demo's model has two, and streaming needs three.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from vlmtune.demo.digits import write_digits
from vlmtune.runs.folder import RunFolder
from vlmtune.runs.versions import library_versions

ROOT = Path(__file__).parents[2]
SEEDS = (1, 2, 3)
LEVERS = ("hardware.offload_embeddings", "hardware.offload_activations", "data.cache_features")


@dataclass(frozen=True)
class Run:
    """One demo and what became of it."""

    seed: int
    levers: bool
    exact_match: float
    last_loss: float
    reserved_bytes: int | None
    answers_sha256: str
    adapter_sha256: str


def demo(folder: Path, seed: int, levers: bool) -> Run:
    """Train and evaluate in processes of their own."""
    set_to = {"training.seed": seed, **dict.fromkeys(LEVERS, str(levers).lower())}
    run = trained_demo(folder, f"{seed}-{levers}", set_to)
    answered = json.loads(vlmtune("evaluate", run.path, "--json"))
    report = json.loads((run.path / "report.json").read_text(encoding="utf-8"))
    return Run(
        seed,
        levers,
        answered["exact_match"],
        run.read_log()[-1].loss,
        report["peak_reserved_bytes"],
        hashlib.sha256(json.dumps(answered["answers"]).encode()).hexdigest(),
        hashlib.sha256((run.path / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest(),
    )


def trained_demo(folder: Path, name: str, set_to: dict[str, object]) -> RunFolder:
    """Train on the digits in `folder`, in a process of its own."""
    values = {
        "experiment_name": name,
        "output_dir": folder / "runs",
        "data.train_path": folder / "train.jsonl",
        "data.val_path": folder / "heldout.jsonl",
        **set_to,
    }
    words = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    vlmtune("train", ROOT / "configs" / "smoke.yaml", *words)
    return RunFolder(folder / "runs" / name)


def vlmtune(*words: object) -> str:
    """Run a command and return what it prints."""
    command = [sys.executable, "-m", "vlmtune", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> int:
    """Print every run, write them to a file where one is named, and return 0 when answers are the same."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--at-a-time", type=int, default=1)
    asked = parser.parse_args()
    wanted = [(seed, levers) for seed in SEEDS for levers in (False, True)]
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(asked.at_a_time) as pool:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        write_digits(folder)
        for run in pool.map(lambda one: demo(folder, *one), wanted):
            print(run, flush=True)
            runs.append(run)
            if asked.out:
                found = {"versions": library_versions(), "runs": [asdict(run) for run in runs]}
                asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    pairs = zip(runs[::2], runs[1::2], strict=True)
    return int(any(without.exact_match != pulled.exact_match for without, pulled in pairs))


if __name__ == "__main__":
    sys.exit(main())
