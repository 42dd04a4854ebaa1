"""vlmtune and TRL under accelerate on several of the GPUs at hand, vlmtune on one too: `make gpu-ranks-peers`.

Qwen3-VL-4B with random weights that both load from the same files, rows of documents, as many a step and a micro-batch
for both however many GPUs there are. All processes start at once and load; then the runs take their turns, no two on
one GPU. First, while no GPU is used, what NCCL takes of each. Results are written after each run, behind those of
other machines.

    python tests/gpu/ranks_peers.py OUT --trl FOLDER [--limit S] [--folder DIR] [--no-p2p]

With `--no-p2p` all goes through main memory, as between consumer cards. FOLDER has TRL and what it needs
(tests/gpu/peers-trl.txt); `--folder` is where 9 GB of weights go for the while.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu.bench import CATALOGUE, ROOT, SETS, environment  # noqa: E402
from gpu.cases import QWEN3_4B, Case, prepare  # noqa: E402
from gpu.features import write_rows  # noqa: E402
from gpu.peers import Run  # noqa: E402
from gpu.profiled import Clock  # noqa: E402
from gpu.ranks import sums_with  # noqa: E402
from gpu.turns import RESULT, Turn, take_turns, wait_for_turn  # noqa: E402

LIMIT_S, NEEDED_S = 120.0, 8.0
BATCH, ROWS_PER_STEP, STEPS, WARM_UP = 4, 32, 5, 2
WEIGHTS_THERE = "weights-there"


def take_part(tool: str, folder: Path, number: int, size: int) -> None:
    """Be one of the processes of a run; the first one writes the seconds of each step."""
    shared = folder.parent
    offer = {"training.batch_size": BATCH, "training.gradient_accumulation_steps": ROWS_PER_STEP // BATCH}
    train = _trl if tool == "trl" else _vlmtune
    while not (shared / WEIGHTS_THERE).exists():
        time.sleep(0.1)
    clock = Clock(warm_up=WARM_UP)
    asked = Run(tool, str(shared / "model-of"), "docs", ROWS_PER_STEP, (offer,))
    found = train(asked, clock, folder, number, size)
    step_s = statistics.median(clock.timed())
    if number == 0:
        taken = {"reserved_bytes": torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None}
        found |= taken | {"step_seconds": clock.seconds, "rows_per_s": ROWS_PER_STEP / step_s}
        (folder / RESULT).write_text(json.dumps(found), encoding="utf-8")


def _vlmtune(asked: Run, clock: Clock, folder: Path, number: int, size: int) -> dict:
    """Train with the engine, as processes that `vlmtune train` has started."""
    from gpu.side_by_side import Vlmtune, versions

    from vlmtune.engine.ranks.join import Place, join, leave
    from vlmtune.engine.runtime import prepare_environment

    prepare_environment()
    if size > 1:
        join(Place(number, size, os.environ.get("CUDA_VISIBLE_DEVICES"), str(folder / "store")))
    offer = {**asked.offers[0], "training.max_steps": STEPS, "hardware.num_gpus": size}
    found = Vlmtune(asked).train(offer, clock, lambda: wait_for_turn(folder, number))
    if size > 1:
        leave()
    return {"losses": found["losses"], "trainable": found["trainable"], "versions": versions()}


def _trl(asked: Run, clock: Clock, folder: Path, number: int, size: int) -> dict:
    """Train with SFTTrainer, as `accelerate launch` has started it; each GPU's share of a step is its own."""
    from dataclasses import replace

    from gpu.peers import Trl
    from gpu.side_by_side import versions

    class Longer(Trl):
        def arguments(self, batch: int, accumulation: int) -> dict:
            return super().arguments(batch, accumulation) | {"max_steps": STEPS}

    peer = Longer(replace(asked, rows_per_step=ROWS_PER_STEP // size))
    found = peer.train({"batch": BATCH}, clock, lambda: wait_for_turn(folder, number))
    return {"losses": found["losses"], "trainable": found["trainable"], "versions": versions()}


def turn_of(tool: str, gpus: Sequence[int], folder: Path, trl: Path) -> Turn:
    """Return a run on these GPUs."""
    name = f"{tool}-{len(gpus)}"
    own = folder / name
    words = [__file__, "--part", tool, str(own), str(len(gpus))]
    if tool == "vlmtune":
        parts = [
            ([sys.executable, *words, str(number)], environment(str(gpu), None)) for number, gpu in enumerate(gpus)
        ]
        return Turn(name, gpus, own, parts)
    launch = ["-m", "accelerate.commands.launch", "--num_processes", str(len(gpus)), "--num_machines", "1"]
    launch += ["--mixed_precision", "bf16", "--dynamo_backend", "no", "--main_process_port", str(29_600 + len(gpus))]
    launch += ["--multi_gpu"] if len(gpus) > 1 else []
    return Turn(name, gpus, own, [([sys.executable, *launch, *words], environment(",".join(map(str, gpus)), trl))])


def runs_on(most: int) -> list[tuple[str, Sequence[int]]]:
    """Return what runs where: those on one GPU beside those on two."""
    if most < 4:
        return [("vlmtune", (0, 1)), ("trl", (0, 1)), ("vlmtune", (0,))]
    pair, four = (0, 1), range(4)
    return [("vlmtune", pair), ("vlmtune", (2,)), ("trl", pair), ("vlmtune", four), ("trl", four)]


def measure(asked: argparse.Namespace) -> None:
    """Measure and write after each run what is known."""
    until, most = time.monotonic() + asked.limit, torch.cuda.device_count()
    found = {"gpus": f"{most} {torch.cuda.get_device_name(0)}", "p2p": not asked.no_p2p, "sums": [], "runs": []}
    head = {"model": QWEN3_4B, "rows_per_step": ROWS_PER_STEP, "batch": BATCH}
    earlier = json.loads(asked.out.read_text(encoding="utf-8"))["machines"] if asked.out.exists() else []

    def told(turn: Turn, failed: str) -> None:
        result = turn.folder / RESULT
        run = {"error": failed} if failed else json.loads(result.read_text(encoding="utf-8"))
        found["runs"].append({"tool": turn.name.split("-")[0], "num_gpus": len(turn.gpus)} | run)
        print(turn.name, run.get("rows_per_s"), failed, f"{until - time.monotonic():.0f} s left", flush=True)
        write()

    def write() -> None:
        text = json.dumps(head | {"machines": [*earlier, found]}, indent=1)
        asked.out.write_text(text + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name).resolve()
        found["sums"] = [sums_with("ours", most, folder)]
        write()
        print(found["sums"], f"{until - time.monotonic():.0f} s left", flush=True)
        rows = SETS["docs"]
        prepare(Case("ranks", asked.model), asked.catalogue, folder / "model-of")
        threading.Thread(target=write_weights, args=(folder,)).start()
        write_rows(folder / "docs.jsonl", STEPS * ROWS_PER_STEP, rows.picture_px, rows.chars)
        turns = [turn_of(tool, gpus, folder, asked.trl.resolve()) for tool, gpus in runs_on(most)]
        take_turns(turns, 1, until, NEEDED_S, told)


def write_weights(folder: Path) -> None:
    """Give the model random weights, and tell the runs that they are there."""
    began = time.monotonic()
    words = [sys.executable, str(ROOT / "tests/gpu/measure.py"), "--weights", str(folder / "model-of" / "model")]
    subprocess.run(words, check=True)
    (folder / WEIGHTS_THERE).touch()
    print(f"weights took {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--trl", type=Path, metavar="FOLDER")
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="S")
    parser.add_argument("--folder", type=Path, metavar="DIR")
    parser.add_argument("--no-p2p", action="store_true")
    parser.add_argument("--model", default=QWEN3_4B)
    parser.add_argument("--catalogue", type=Path, default=CATALOGUE)
    parser.add_argument("--part", nargs="+", help="be one of the processes")
    asked = parser.parse_args()
    if asked.part:
        tool, folder, size, number = [*asked.part, os.environ.get("RANK", "0")][:4]
        take_part(tool, Path(folder), int(number), int(size))
    else:
        os.environ.update({"NCCL_P2P_DISABLE": "1"} if asked.no_p2p else {})
        measure(asked)


if __name__ == "__main__":
    main()
