"""Runs `vlmtune train` itself on the GPU at hand and writes estimates beside measurements: `make gpu-train`.

Some epochs of rows with uneven texts and images, Qwen3-VL-2B with random weights loaded from files.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu.cases import QWEN3_2B, Case, prepare  # noqa: E402

from vlmtune.runs.versions import library_versions  # noqa: E402

ROOT = Path(__file__).parents[2]
ROWS = 90
RANK_64 = ("training.lora.rank=64", "training.lora.alpha=128", "training.optim=adamw")


@dataclass(frozen=True)
class Training:
    """One run of the command."""

    name: str
    words: tuple[str, ...]
    expandable: bool = True


TWO_EPOCHS = ("training.num_epochs=2", "training.gradient_accumulation_steps=8")
FIVE_EPOCHS = ("training.num_epochs=5", "training.gradient_accumulation_steps=2", "training.batch_size=2")
TRAININGS = (
    Training("two-epochs", TWO_EPOCHS),
    Training("two-epochs-rank64", (*TWO_EPOCHS, *RANK_64)),
    Training("two-epochs-rank64-batch2", (*TWO_EPOCHS, *RANK_64, "training.batch_size=2")),
    Training("five-epochs", FIVE_EPOCHS),
    Training("five-epochs-native", FIVE_EPOCHS, expandable=False),
)


def write_rows(folder: Path) -> Path:
    """Write rows whose images have sides of 200 to 900 px, and texts of which few are long."""
    rng, lines = random.Random(1), []
    for number in range(ROWS):
        picture = folder / f"uneven-{number}.png"
        Image.effect_noise((rng.randint(200, 900), rng.randint(200, 900)), 64).convert("RGB").save(picture)
        question, answer = ("word " * int(rng.expovariate(1 / 15)), "noise " * int(1 + rng.expovariate(1 / 15)))
        row = {"image": picture.name, "question": f"What is it? {question}", "answer": f"it is {answer}"}
        lines.append(json.dumps(row))
    path = folder / "uneven.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def trained(training: Training, folder: Path) -> dict:
    """Run the command; return what it estimated and what it took."""
    where = (f"model.name={folder / 'model'}", f"data.train_path={folder / 'uneven.jsonl'}", "data.val_path=null")
    run = (f"output_dir={folder / 'runs'}", f"experiment_name={training.name}", "data.max_length=1100")
    words = [part for word in (*where, *run, *training.words) for part in ("--set", word)]
    settings = {"PYTORCH_ALLOC_CONF": f"expandable_segments:{training.expandable}"}
    command = [sys.executable, "-m", "vlmtune", "train", str(ROOT / "configs" / "8gb.yaml"), *words]
    subprocess.run(command, env={**os.environ, **settings}, check=True)
    report = json.loads((folder / "runs" / training.name / "report.json").read_text(encoding="utf-8"))
    kept = ("steps", "memory_estimated", "memory_measured", "gpu")
    return {"name": training.name, "words": training.words} | {key: report[key] for key in kept}


def main(out: Path) -> None:
    """Write every run's figures to `out`."""
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(len(TRAININGS)) as pool:
        folder = Path(name)
        prepare(Case("train", QWEN3_2B), ROOT / "vlmtune" / "catalog", folder)
        subprocess.run([sys.executable, ROOT / "tests/gpu/measure.py", "--weights", folder / "model"], check=True)
        write_rows(folder)
        runs = list(pool.map(lambda training: trained(training, folder), TRAININGS))
        text = json.dumps({"versions": library_versions(), "runs": runs}, indent=1)
        out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
