"""Ends runs of two processes at random moments, in every way, and goes on until they have ended: `make ranks`.

A process is killed, or the one that has started them, or Ctrl-C comes. What is learned in the end must be what a run
without all that learns, bit for bit, and no process may be left. On the CPU, with a tiny model.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import save_tiny  # noqa: E402
from tiny.rows import colour_rows  # noqa: E402

STEPS = 60
MOST_S = 120.0
DRIVER = """
from dataclasses import replace
from vlmtune.engine import runtime
real = runtime.probe_device
runtime.probe_device = lambda: replace(real(), num_gpus=2)
from vlmtune.cli import main
main({words!r})
"""
WAYS = ("first process", "second process", "all", "Ctrl-C")


def prepare(root: Path) -> Path:
    """Write model, rows and config; return the config."""
    save_tiny("llava", root / "llava")
    rows = [
        {"image": one.images[0].path, "question": one.turns[0].text, "answer": one.answer}
        for one in colour_rows(root, 9)
    ]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = {
        "max_steps": STEPS,
        "gradient_accumulation_steps": 4,
        "save_steps": 2,
        "lora": {"rank": 4, "dropout": 0.1},
    }
    values = {"model": {"name": str(root / "llava")}, "data": {"train_path": "rows.jsonl"}, "training": training}
    config = root / "run.yaml"
    config.write_text(yaml.safe_dump({**values, "output_dir": str(root / "runs"), "hardware": {"num_gpus": 2}}))
    return config


def started(config: Path, name: str) -> subprocess.Popen:
    """Start the command, or go on, in a session of its own."""
    words = ["train", str(config), "--resume=auto", "--set", f"experiment_name={name}"]
    command = [sys.executable, "-c", DRIVER.format(words=words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def ranks_of(process: int) -> list[int]:
    """Return the processes that it has started, in their order."""
    shown = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    lines = [line.split(maxsplit=2) for line in shown.splitlines()[1:]]
    return sorted(int(pid) for pid, parent, words in lines if int(parent) == process and "spawn_main" in words)


def is_there(process: int) -> bool:
    """Return whether it runs: one that has ended stays in the list until the process that inherited it has looked."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def end(run: subprocess.Popen, way: str) -> str:
    """End a run that has begun its steps; return what was left of it, nothing being right."""
    ranks = ranks_of(run.pid)
    if way == "Ctrl-C":
        os.killpg(run.pid, signal.SIGINT)
    else:
        os.kill({"first process": ranks[0], "second process": ranks[-1], "all": run.pid}[way], signal.SIGKILL)
    began = time.monotonic()
    _, said = run.communicate(timeout=MOST_S)
    time.sleep(1)
    left = [rank for rank in ranks if is_there(rank)]
    print(f"{way}: exit code {run.returncode} after {time.monotonic() - began:.1f} s", flush=True)
    return f"{way}: {left} are left" if left else "Traceback" * ("Traceback" in said)


def ended_at_random(config: Path, name: str, kills: int, rng: random.Random) -> list[str]:
    """Train a run that is ended again and again; return what was wrong."""
    wrong = []
    for number in range(kills + 1):
        run = started(config, name)
        for line in run.stdout:
            if line.startswith("step ") and number < kills:
                break
        else:
            _, said = run.communicate(timeout=MOST_S)
            return wrong + [f"exit code {run.returncode}: {said}"] * bool(run.returncode)
        time.sleep(rng.random())
        wrong += [one] if run.poll() is None and (one := end(run, WAYS[number % len(WAYS)])) else []
    raise AssertionError("the last one ends")


def main(kills: int) -> None:
    """Exit with 1 if anything was lost."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        config = prepare(Path(name))
        wrong = ended_at_random(config, "straight", 0, rng)
        done, number = 0, 0
        while done < kills:
            some = min(8, kills - done)
            wrong += ended_at_random(config, f"ended-{number}", some, rng)
            done, number = done + some, number + 1
        files = [
            Path(name) / "runs" / one / "adapter" / "adapter_model.safetensors"
            for one in ("straight", *(f"ended-{n}" for n in range(number)))
        ]
        assert all(file.exists() for file in files), wrong
        straight, *others = map(load_file, files)
        for other in others:
            wrong += ["other weights"] if any(not torch.equal(straight[key], other[key]) for key in straight) else []
    print(f"{kills} times ended: {wrong or 'nothing lost'}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main(int(sys.argv[1]))
