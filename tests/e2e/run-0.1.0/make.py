"""Makes the project of this folder anew, with the vlmtune that PYTHONPATH names: see README.md."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny import save_tiny
from tiny.rows import colour_rows

import vlmtune

HERE = Path(__file__).parent
NUM_ROWS = 7
SHORT = ["--max-new-tokens", "12"]
CONFIG = {
    "experiment_name": "interrupted",
    "model": {"name": "model"},
    "data": {"train_path": "rows.jsonl", "val_path": "held-out.jsonl"},
    "training": {
        "num_epochs": 5,
        "batch_size": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 0.01,
        "save_steps": 2,
        "save_total_limit": 1,
        "eval_steps": 6,
        "lora": {"rank": 2, "alpha": 4, "dropout": 0.1},
    },
    "hardware": {"on_oom": "retry"},
}
# The fourth forward pass runs out of memory, so that the run goes on from checkpoint-2 with smaller batches; step 5 is
# killed after its line in the log, so that the log is ahead of the newest checkpoint.
DRIVER = """
import os, signal, torch
from vlmtune.engine import callbacks, trainer

class Properties:
    total_memory = 8 * 2**30

torch.cuda.memory_allocated = lambda: 7 * 2**30
torch.cuda.memory_reserved = lambda: 15 * 2**29
torch.cuda.mem_get_info = lambda: (2**28, 8 * 2**30)
torch.cuda.get_per_process_memory_fraction = lambda: 1.0
torch.cuda.get_device_properties = lambda device: Properties

forward_loss, on_log, calls = trainer.forward_loss, callbacks.Recorder.on_log, []

def out_of_memory_once(*args):
    calls.append(args)
    if len(calls) == 4:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.20 GiB.")
    return forward_loss(*args)

def log_and_die(self, args, state, control, **kwargs):
    on_log(self, args, state, control, **kwargs)
    if state.global_step == 5:
        os.kill(os.getpid(), signal.SIGKILL)

trainer.forward_loss, callbacks.Recorder.on_log = out_of_memory_once, log_and_die
"""


def vlmtune_in(folder: Path, *words: str, driver: str = "") -> subprocess.CompletedProcess:
    """Run a command in a process of its own, after the lines of `driver`."""
    code = f"{driver}\nfrom vlmtune.cli import main\nmain({list(words)!r})"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)


def write_inputs(project: Path) -> None:
    """Write the model, rows with pictures and the config.

    The weights are in bf16, which halves them; with the head 16 times as large, some steps are enough to learn words.
    """
    model = save_tiny("llava", project / "model")
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(model / "model.safetensors").items()}
    weights["language_model.lm_head.weight"] *= 16
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}, indent=2) + "\n", encoding="utf-8")
    rows = [
        {"image": Path(row.images[0].path).name, "question": row.turns[0].text, "answer": row.answer}
        for row in colour_rows(project, NUM_ROWS)
    ]
    lines = [json.dumps(row) + "\n" for row in rows]
    (project / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    (project / "held-out.jsonl").write_text("".join(lines[:3]), encoding="utf-8")
    (project / "run.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False), encoding="utf-8")


def finish_a_copy(project: Path) -> None:
    """Let the same vlmtune resume a copy of the interrupted run; the finished folder is what to expect of others."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        shutil.copytree(project, copy)
        done = vlmtune_in(copy, "train", "run.yaml", "--resume")
        assert done.returncode == 0, done.stderr
        without = shutil.ignore_patterns("checkpoints")
        shutil.copytree(copy / "runs" / "interrupted", project / "runs" / "finished", ignore=without)


def expected(project: Path) -> dict:
    """Return what the commands say of the finished run."""
    with tempfile.TemporaryDirectory() as folder:
        asked = ["--image", "blue2.png", "--prompt", "What colour is this?"]
        commands = {
            "evaluate": ["evaluate", "runs/finished", *SHORT],
            "generate": ["generate", "runs/finished", *asked, *SHORT],
            "merge": ["merge", "runs/finished", "-o", f"{folder}/merged"],
        }
        said = {name: vlmtune_in(project, *words, "--json") for name, words in commands.items()}
    assert [done.returncode for done in said.values()] == [0, 0, 0], [done.stderr for done in said.values()]
    answers = {name: json.loads(done.stdout) for name, done in said.items()}
    del answers["merge"]["out"]
    return answers


def main() -> None:
    """Make the project and the expected answers."""
    assert vlmtune.__version__ == "0.1.0", "PYTHONPATH must name a checkout of vlmtune 0.1.0"
    project = HERE / "project"
    shutil.rmtree(project, ignore_errors=True)
    project.mkdir()
    write_inputs(project)
    died = vlmtune_in(project, "train", "run.yaml", driver=DRIVER)
    assert died.returncode == -signal.SIGKILL, died.stdout + died.stderr
    finish_a_copy(project)
    (HERE / "expected.json").write_text(json.dumps(expected(project), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
