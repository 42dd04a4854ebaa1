"""Trains on one GPU and on all of them and writes times, peaks and NCCL's bytes: `make gpu-ranks`.

`vlmtune train` itself, Qwen3-VL-2B with random weights loaded from files, rows of uneven texts and images. Then what
NCCL takes of a card and of the time with other settings, and gloo in its place. What is not begun after seven minutes
is left out; the results are written after each run.

With `--shard` Qwen3-VL-4B in their place, on cards of which other processes hold all but too little for one GPU alone:
refused on one, its layers shared by two and by all; and as they are on two whole cards.
"""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu.ballast import ballast_on  # noqa: E402
from gpu.cases import QWEN3_2B, QWEN3_4B, Case, prepare  # noqa: E402
from gpu.train import write_rows  # noqa: E402

from vlmtune.engine.ranks.single import gpus_there, note_gpus  # noqa: E402
from vlmtune.runs.versions import library_versions  # noqa: E402

ROOT = Path(__file__).parents[2]
BEGIN_WITHIN_S = 420.0
ENDED_WITHIN_S = 200.0
SUMMED_NUMBERS = 40_000_000
"""Adapters of rank 16 on a 7B model."""
OF_A_STEP = ("training.num_epochs=2", "training.gradient_accumulation_steps=8")
PLANS = {
    "rank16": OF_A_STEP,
    "rank64": (*OF_A_STEP, "training.lora.rank=64", "training.lora.alpha=128", "training.optim=adamw"),
    "batch2": (*OF_A_STEP, "training.batch_size=2", "training.gradient_accumulation_steps=4"),
    "tower": (*OF_A_STEP, "training.lora.vision_tower=true"),
    "packs": (*OF_A_STEP, "training.packing=true"),
    "few-rows": ("training.num_epochs=1", "training.gradient_accumulation_steps=4", "training.max_steps=8"),
}
EIGHT_STEPS = ("training.max_steps=8", "training.gradient_accumulation_steps=8")
PLANS |= {
    "whole": (*EIGHT_STEPS, "hardware.shard=never"),
    "shared": (*EIGHT_STEPS, "hardware.shard=always"),
    "little-room": EIGHT_STEPS,
}
ROWS_PER_STEP = {"few-rows": 4, "whole": 8, "shared": 8, "little-room": 8}
LEFT_SHARE = 0.94
"""Of what one GPU takes alone."""
SETTINGS = {
    "ours": None,
    "NCCL's own": {},
    "1 channel, 256 KiB": {"NCCL_MAX_NCHANNELS": "1", "NCCL_BUFFSIZE": str(2**18)},
    "1 channel, 1 MiB": {"NCCL_MAX_NCHANNELS": "1", "NCCL_BUFFSIZE": str(2**20)},
    "4 channels, 1 MiB": {"NCCL_MAX_NCHANNELS": "4", "NCCL_BUFFSIZE": str(2**20)},
    "gloo": {},
}


@dataclass
class Results:
    """What is known so far, on the disk after each run."""

    out: Path
    runs: list[dict]
    sums: list[dict]
    began: float

    def write(self) -> None:
        """Write it."""
        gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        found = {"versions": library_versions(), "gpus": gpus, "runs": self.runs, "sums": self.sums}
        self.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    @property
    def is_late(self) -> bool:
        """Whether nothing is to begin any more."""
        return time.monotonic() - self.began > BEGIN_WITHIN_S


def trained(name: str, num_gpus: int, folder: Path) -> dict:
    """Run the command; return what it estimated, what it took, and rows a second from the third step on."""
    run = f"{name}-{num_gpus}"
    where = (f"model.name={folder / 'model'}", f"data.train_path={folder / 'uneven.jsonl'}", "data.val_path=null")
    words = (*where, f"output_dir={folder / 'runs'}", f"experiment_name={run}", "data.max_length=1100", *PLANS[name])
    options = [part for word in (*words, f"hardware.num_gpus={num_gpus}") for part in ("--set", word)]
    command = [sys.executable, "-m", "vlmtune", "train", str(ROOT / "configs" / "8gb.yaml"), *options]
    began = time.monotonic()
    code, said, told = _ended(command)
    found = {"name": name, "num_gpus": num_gpus, "wall_s": time.monotonic() - began}
    if code:
        return found | {"error": told[-3000:], "said": said[-1000:]}
    report = json.loads((folder / "runs" / run / "report.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (folder / "runs" / run / "log.jsonl").read_text().splitlines()]
    rows_per_step = ROWS_PER_STEP.get(name, report["num_rows"] * 2 / report["steps"])
    steady_s = log[-1]["elapsed_s"] - log[1]["elapsed_s"]
    kept = ("steps", "memory_estimated", "memory_measured", "gpus", "gpus_agree", "samples_per_s", "train_loss_last")
    speed = {"rows_per_s": rows_per_step * (len(log) - 2) / steady_s, "losses": [record["loss"] for record in log]}
    return found | speed | {key: report[key] for key in kept}


def _ended(command: list[str]) -> tuple[int, str, str]:
    """Return the exit code of a command and what it said; with one that takes too long its processes are killed."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        try:
            said, told = run.communicate(timeout=ENDED_WITHIN_S)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            said, told = run.communicate()
            told += f"\nnot ended within {ENDED_WITHIN_S:g} s"
    return run.returncode, said, told


def sums_with(name: str, num_gpus: int, folder: Path) -> dict:
    """Return what adding adapters' gradients up takes with settings of NCCL, in processes of its own."""
    context = multiprocessing.get_context("spawn")
    told = context.SimpleQueue()
    file = str(folder / name.replace(" ", "-"))
    processes = [
        context.Process(target=add_up, args=(name, number, num_gpus, file, told)) for number in range(num_gpus)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    if any(process.exitcode for process in processes):
        return {"settings": name, "num_gpus": num_gpus, "error": [process.exitcode for process in processes]}
    return {"settings": name, "num_gpus": num_gpus, **told.get()}


def add_up(name: str, number: int, size: int, file: str, told: multiprocessing.SimpleQueue) -> None:
    """Be one of the processes; the first tells the bytes of its GPU and the milliseconds."""
    from torch import distributed as dist

    from vlmtune.hardware.communication import NCCL_SETTINGS

    settings = NCCL_SETTINGS if SETTINGS[name] is None else SETTINGS[name]
    os.environ.update(settings, GLOO_SOCKET_IFNAME="lo", NCCL_SOCKET_IFNAME="lo")
    torch.cuda.set_device(number)
    flat = torch.ones(SUMMED_NUMBERS, device="cuda")
    waiting = torch.empty(SUMMED_NUMBERS, pin_memory=True) if name == "gloo" else None
    torch.cuda.synchronize()
    free = [torch.cuda.mem_get_info()[0]]
    store = dist.FileStore(file, size)
    limit = timedelta(seconds=60)
    dist.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=number, world_size=size, timeout=limit)

    def summed() -> None:
        if waiting is None:
            dist.all_reduce(flat)
        else:
            waiting.copy_(flat)
            dist.all_reduce(waiting)
            flat.copy_(waiting)
        torch.cuda.synchronize()

    summed()
    free.append(torch.cuda.mem_get_info()[0])
    began = time.perf_counter()
    for _ in range(5):
        summed()
    if number == 0:
        told.put({"taken_bytes": free[0] - free[1], "ms": 200 * (time.perf_counter() - began)})
    dist.destroy_process_group()


def main(out: Path, *, shard: bool) -> None:
    """Write all results to `out`."""
    results = Results(out, [], [], time.monotonic())
    most = torch.cuda.device_count()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(Case("train", QWEN3_4B if shard else QWEN3_2B), ROOT / "vlmtune" / "catalog", folder)
        subprocess.run([sys.executable, ROOT / "tests/gpu/measure.py", "--weights", folder / "model"], check=True)
        write_rows(folder)
        if shard:
            _shared(results, most, folder)
        else:
            _whole(results, most, folder)


def _whole(results: Results, most: int, folder: Path) -> None:
    plans = [plan for plan in PLANS if plan not in ("rank16", "whole", "shared", "little-room")]
    for count in (count for count in (1, 2, 4, 8) if count <= most):
        _try(results, "rank16", count, folder)
    _all_sums(results, most, folder)
    for plan in plans:
        _try(results, plan, most, folder)


def _shared(results: Results, most: int, folder: Path) -> None:
    from vlmtune.hardware.at_hand import card_at_hand

    _try(results, "whole", 1, folder)
    alone_bytes = results.runs[0]["memory_measured"]["peak_reserved_bytes"]
    with _ballast(most, card_at_hand().context_bytes + int(LEFT_SHARE * alone_bytes)):
        for count in dict.fromkeys((1, 2, most)):
            _try(results, "little-room", count, folder)
    _try(results, "whole", 2, folder)
    _try(results, "shared", 2, folder)


@contextmanager
def _ballast(num_gpus: int, left_bytes: int) -> Iterator[None]:
    """Let other processes hold all but so much of each GPU."""
    note_gpus(num_gpus)
    with ExitStack() as stack:
        for gpu in gpus_there():
            stack.enter_context(ballast_on(gpu, left_bytes))
        yield


def _try(results: Results, plan: str, num_gpus: int, folder: Path) -> None:
    if results.is_late:
        return
    print(f"{plan} on {num_gpus}, after {time.monotonic() - results.began:.0f} s ...", flush=True)
    results.runs.append(trained(plan, num_gpus, folder))
    results.write()
    print({key: results.runs[-1].get(key) for key in ("name", "num_gpus", "wall_s", "rows_per_s", "error")}, flush=True)


def _all_sums(results: Results, num_gpus: int, folder: Path) -> None:
    for settings in SETTINGS:
        results.sums.append(sums_with(settings, num_gpus, folder))
        results.write()
        print(results.sums[-1], flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), shard="--shard" in sys.argv)
