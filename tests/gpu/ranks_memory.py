"""Trains plans in several processes on the GPUs at hand and writes every GPU's peaks: `make gpu-ranks-memory`.

Each plan is the engine in processes of its own, as many as it takes GPUs. All of them start at once and import the
libraries; then the plans take their turns, a few at a time on each GPU: what a process allocates does not
depend on the others. Weights are random and made on the card. Results are written after each plan; what is not done in
time is left out. Some plans run under a cap, which one GPU alone is to exceed.

    python tests/gpu/ranks_memory.py --estimate ESTIMATED    (without a GPU, before)
    python tests/gpu/ranks_memory.py --measure MEASURED [--limit S] [--names PATTERN]
    python tests/gpu/ranks_memory.py --compare ESTIMATED MEASURED
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu.cases import (  # noqa: E402
    ACTIVATIONS_AWAY,
    EMBEDDINGS_AWAY,
    FP32_STATES,
    FULL_TUNING,
    GEMMA_4B,
    LLAVA_7B,
    LORA,
    ONE_TILE,
    PALI_3B,
    QWEN3_2B,
    QWEN3_4B,
    QWEN3_8B,
    QWEN25_3B,
    QWEN25_7B,
    RANK_64,
    SMOL_2B,
    SMOL_500M,
    UNPAGED,
    UNSEEN,
    VARLEN,
    Case,
    opened,
    prepare,
)
from gpu.turns import RESULT, Turn, take_turns, wait_for_turn  # noqa: E402

from vlmtune.runs.versions import library_versions  # noqa: E402
from vlmtune.units import GIB  # noqa: E402

CATALOGUE = Path(__file__).parents[2] / "vlmtune" / "catalog"
AT_A_TIME = 2
"""Plans on each GPU."""
LIMIT_S = 200.0
NEEDED_S = 12.0
"""No plan takes its turn with less left."""
CAP_BYTES = 7 * GIB
EIGHT_STEPS = {
    **VARLEN,
    "training.gradient_accumulation_steps": 4,
    "training.max_steps": 8,
    "hardware.num_workers": 0,
}
SHARED = {"hardware.shard": "always"}
PACKED = {"training.packing": True, "training.gradient_accumulation_steps": 8}
TOWER = {"training.lora.vision_tower": True}
BATCH_2 = {"training.batch_size": 2}
FULL = {**FULL_TUNING, "hardware.lean_lora": False}


def _plan(name: str, model: str, number: int, *settings: dict, expandable: bool = True) -> Case:
    """Return a plan for so many GPUs over uneven rows."""
    values = {
        key: value for one in ({**EIGHT_STEPS, "hardware.num_gpus": number}, *settings) for key, value in one.items()
    }
    return Case(f"{number}-{name}", model, 600, expandable=expandable, settings=values, rows=24, mixed_images=True)


RUNS = (
    _plan("mistral-24b-shared", UNSEEN["mistral-24b"], 4, SHARED),
    _plan("llava-13b-shared-native", UNSEEN["llava-13b"], 2, SHARED, expandable=False),
    _plan("qwen25-7b", QWEN25_7B, 2),
    _plan("qwen3-8b-shared-packs", QWEN3_8B, 4, SHARED, PACKED),
    _plan("qwen25-7b-shared", QWEN25_7B, 2, SHARED),
    _plan("qwen2-vl-2b-batch2", UNSEEN["qwen2-vl-2b"], 2, BATCH_2),
    _plan("qwen3-2b-rank64", QWEN3_2B, 2, RANK_64),
    _plan("gemma-4b", GEMMA_4B, 2),
    _plan("internvl3-8b-shared-rank64", UNSEEN["internvl3-8b"], 2, SHARED, RANK_64),
    _plan("pali-3b-lora", PALI_3B, 2, LORA, {"training.lora.rank": 32}),
    _plan("smol-2b-lora", SMOL_2B, 2, LORA, ONE_TILE),
    _plan("qwen3-4b-tower", QWEN3_4B, 4, TOWER),
    _plan("qwen25-3b-packs-native", QWEN25_3B, 2, PACKED, expandable=False),
    _plan("llava-7b-streamed", LLAVA_7B, 2, {"hardware.streamed_layers": 16}),
    _plan("smol-500m-full", SMOL_500M, 2, FULL),
    _plan("qwen3-4b-shared-tower-native", QWEN3_4B, 2, SHARED, TOWER, expandable=False),
    _plan("llava-7b-shared-batch2", LLAVA_7B, 2, SHARED, BATCH_2),
    _plan("llava-13b-shared", UNSEEN["llava-13b"], 4, SHARED, BATCH_2),
    _plan("onevision-7b-away", UNSEEN["onevision-7b"], 2, ACTIVATIONS_AWAY, EMBEDDINGS_AWAY),
    _plan("qwen2-vl-2b-full", UNSEEN["qwen2-vl-2b"], 2, FULL, UNPAGED),
    _plan("gemma-12b-shared", UNSEEN["gemma-12b"], 4, SHARED),
    _plan("internvl3-2b-fp32-states", UNSEEN["internvl3-2b"], 2, FP32_STATES),
    _plan("mistral-24b-alone", UNSEEN["mistral-24b"], 1),
    _plan("llava-13b-alone", UNSEEN["llava-13b"], 1),
)
"""What is measured, the weightiest first."""
CAPPED = ("4-mistral-24b-shared", "2-llava-13b-shared-native", "1-mistral-24b-alone", "1-llava-13b-alone")
"""Under CAP_BYTES: those alone are to run out of memory."""


def take_part(case: Case, catalogue: Path, folder: Path, number: int) -> None:
    """Be one of the processes of a plan: get ready, wait for the turn, train, write what this GPU has taken."""
    from rich.console import Console

    from vlmtune.data.run_data import MeasuredRows, RunData
    from vlmtune.engine import train as engine
    from vlmtune.engine.monitor import LiveView
    from vlmtune.engine.oom import OutOfMemory
    from vlmtune.engine.ranks.join import Place, join, leave
    from vlmtune.engine.runtime import prepare_environment, probe_device, quiet_libraries
    from vlmtune.plan.decide import make_plan
    from vlmtune.plan.file import save_plan
    from vlmtune.runs.folder import RunFolder

    prepare_environment()
    quiet_libraries()
    os.environ["XDG_CACHE_HOME"] = str(folder)
    size = case.settings["hardware.num_gpus"]
    if number == 0:
        prepare(case, catalogue, folder)
    wait_for_turn(folder, number)
    began = time.perf_counter()
    config, source, samples = opened(case, folder)
    plan = make_plan(config, source, replace(probe_device(), num_gpus=size))
    _without_files(plan)
    runs = RunFolder(config.run_dir)
    if number == 0:
        save_plan(plan, RunFolder.create(config.run_dir).plan)
    if size > 1:
        join(Place(number, size, os.environ.get("CUDA_VISIBLE_DEVICES"), str(folder / "store")))
    if case.name in CAPPED and plan.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(CAP_BYTES / torch.cuda.get_device_properties(0).total_memory)
    found = {"case": case.name, "cap_bytes": CAP_BYTES if case.name in CAPPED else None}
    try:
        with LiveView(case.name, Console(file=open(os.devnull, "w"))) as view:  # noqa: SIM115
            report = engine.train(plan, source, RunData(MeasuredRows(samples), MeasuredRows([])), runs, view)
    except OutOfMemory as error:
        _tell(folder, found | {"out_of_memory": error.message})
        return
    log = [json.loads(line) for line in runs.log.read_text(encoding="utf-8").splitlines()]
    found |= {
        "gpus": [vars(one) for one in report.gpus] or [_of_this_gpu(report)],
        "gpus_agree": report.gpus_agree,
        "losses": [record["loss"] for record in log],
        "steps_s": log[-1]["elapsed_s"],
        "seconds": round(time.perf_counter() - began, 1),
    }
    if number == 0:
        _tell(folder, found)
    if size > 1:
        leave()


def _without_files(plan) -> None:
    """Let the engine make weights on the card, and write none that nobody reads."""
    from gpu.measure import made_on_the_card

    from vlmtune.engine import train as engine
    from vlmtune.models import build

    build.load_base = lambda plan, **how: made_on_the_card(plan)
    engine.check_checkpoint = lambda plan: {}
    if plan.method == "full":
        engine.save_tuned = engine.write_card = engine.TuneTrainer._save_checkpoint = lambda *args, **named: None


def _of_this_gpu(report) -> dict:
    return {"peak_reserved_bytes": report.peak_reserved_bytes, "peak_allocated_bytes": report.peak_allocated_bytes}


def _tell(folder: Path, found: dict) -> None:
    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"
    (folder / RESULT).write_text(json.dumps(found | {"gpu": name}), encoding="utf-8")


def measure(asked: argparse.Namespace) -> None:
    """Train the plans and write after each what is known."""
    until, runs, most = time.monotonic() + asked.limit, [], torch.cuda.device_count() or 2
    pairs, turns = [(first, first + 1) for first in range(0, most - 1, 2)], []

    def told(turn: Turn, failed: str) -> None:
        result = turn.folder / RESULT
        runs.append({"case": turn.name, "error": failed} if failed else json.loads(result.read_text(encoding="utf-8")))
        print(turn.name, runs[-1].get("seconds"), failed, f"{until - time.monotonic():.0f} s left", flush=True)
        _write(asked.measure, runs)

    with tempfile.TemporaryDirectory() as folder:
        for case in RUNS:
            size = case.settings["hardware.num_gpus"]
            if re.search(asked.names, case.name) and size <= most:
                least = min(pairs, key=lambda pair: sum(pair[0] in turn.gpus for turn in turns))
                gpus = range(size) if size > 2 else least[:size]
                turns.append(_turn(case, gpus, asked.catalogue, Path(folder) / case.name))
        take_turns(turns, asked.at_a_time, until, NEEDED_S, told)


def _turn(case: Case, gpus: Sequence[int], catalogue: Path, folder: Path) -> Turn:
    env = {"PYTORCH_ALLOC_CONF": f"expandable_segments:{case.expandable}"}
    words = [sys.executable, __file__, "--part", case.name, str(catalogue), str(folder)]
    parts = [([*words, str(number)], env | {"CUDA_VISIBLE_DEVICES": str(gpu)}) for number, gpu in enumerate(gpus)]
    return Turn(case.name, gpus, folder, parts)


def _write(out: Path, runs: list[dict]) -> None:
    found = {"versions": library_versions(), "runs": sorted(runs, key=lambda run: run["case"])}
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def estimate(out: Path, names: str) -> None:
    """Write what each plan is estimated to take of the GPU that needs most, before it is measured."""
    from gpu.compare import prepared, replay_of

    runs = []
    for case in RUNS:
        if re.search(names, case.name):
            with tempfile.TemporaryDirectory() as folder:
                shown = replay_of(case, prepared(case, Path(folder)).log())
            runs.append(
                {
                    "case": case.name,
                    "reserved_bytes": shown.peak_reserved_bytes,
                    "allocated_bytes": shown.peak_allocated_bytes,
                }
            )
            print(
                case.name,
                f"{shown.peak_reserved_bytes / GIB:.3f}",
                f"{shown.peak_allocated_bytes / GIB:.3f}",
                flush=True,
            )
            _write(out, runs)


def compare(estimated: Path, measured: Path) -> None:
    """Print how far the estimates lie from the fullest GPU of each plan, in percent."""
    known = {run["case"]: run for run in json.loads(estimated.read_text(encoding="utf-8"))["runs"]}
    for run in json.loads(measured.read_text(encoding="utf-8"))["runs"]:
        if "gpus" not in run:
            print(f"{run['case']:32}", run.get("out_of_memory") or run.get("error"))
            continue
        errors = [error_of(known[run["case"]], run, kind) for kind in ("allocated", "reserved")]
        print(f"{run['case']:32} {errors[0]:+6.2f} {errors[1]:+6.2f}", "" if run["gpus_agree"] else "GPUs differ")


def error_of(estimated: dict, measured: dict, kind: str) -> float:
    """Return estimate against the fullest GPU, in percent; below zero the estimate is too low."""
    most = max(gpu[f"peak_{kind}_bytes"] for gpu in measured["gpus"])
    return 100 * (estimated[f"{kind}_bytes"] / most - 1)


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimate", type=Path, metavar="ESTIMATED")
    parser.add_argument("--measure", type=Path, metavar="MEASURED")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("ESTIMATED", "MEASURED"))
    parser.add_argument(
        "--part", nargs=4, metavar=("PLAN", "CATALOGUE", "FOLDER", "NUMBER"), help="be one of the processes"
    )
    parser.add_argument("--names", default="", help="regular expression of the plans")
    parser.add_argument("--catalogue", type=Path, default=CATALOGUE, help="folder of the models' configs")
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="S")
    parser.add_argument("--at-a-time", type=int, default=AT_A_TIME, help="plans on each GPU")
    asked = parser.parse_args()
    if asked.part:
        name, catalogue, folder, number = asked.part
        take_part(next(case for case in RUNS if case.name == name), Path(catalogue), Path(folder), int(number))
    elif asked.estimate:
        estimate(asked.estimate, asked.names)
    elif asked.measure:
        measure(asked)
    elif asked.compare:
        compare(*asked.compare)


if __name__ == "__main__":
    main()
