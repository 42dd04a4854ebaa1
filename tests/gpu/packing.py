"""Packed rows beside rows under each other, on the GPU at hand: `make gpu-packing`.

Qwen2.5-VL-3B at its real size with random weights, the same in every run; short rows (448×336 px, 40 to 120 characters,
about 300 tokens), as in the side-by-side runs of 2026-11-26. Each run is the real trainer in a process of its own,
16 rows an optimizer step: in batches of several sizes, and in packs. Of each: seconds and rows a second (median of the
steps after the first three), kernel time and launches of one profiled step, losses, and the measured peaks beside the
estimate. The largest batch and the largest packs take 50 steps, the others 10. Estimates are made before, side by side;
what is there is written after each run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu.cases import QWEN25_3B, Case, prepare  # noqa: E402
from gpu.features import write_rows  # noqa: E402
from gpu.measure import made_on_the_card  # noqa: E402
from gpu.profiled import Clock  # noqa: E402

from vlmtune.runs.versions import library_versions  # noqa: E402

ROOT = Path(__file__).parents[2]
ROWS, ROWS_PER_STEP, WARM_UP = 48, 16, 3
MANY_STEPS, FEW_STEPS = 50, 10
PICTURE_PX, CHARS = (448, 336), (40, 120)
BATCHES, PACKS = (4, 8, 16), (2048, 4096)


def prepared(folder: Path, changes: dict):
    """Return config, plan, model source and rows of a run with these values."""
    from vlmtune.config.schema import TrainingConfig
    from vlmtune.data.samples import read_samples
    from vlmtune.engine.runtime import probe_device, quiet_libraries
    from vlmtune.hub.source import open_model
    from vlmtune.plan.decide import make_plan

    quiet_libraries()
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    values = {
        "experiment_name": "-".join(str(value) for section in changes.values() for value in section.values()),
        "output_dir": str(folder / "runs"),
        "model": {"name": str(folder / "model")},
        "data": {"train_path": str(folder / "short.jsonl"), "cache_features": False},
        "training": {"save_steps": 1000, "learning_rate": 1e-4, **changes["training"]},
        "hardware": {"offload_embeddings": False, **changes["hardware"]},
    }
    config = TrainingConfig.model_validate(values)
    source, samples = open_model(config.model.name, None, folder), read_samples(folder / "short.jsonl").samples
    return config, make_plan(config, source, probe_device()), source, samples


def estimate(folder: Path, changes: dict) -> dict:
    """Return what a run is estimated to take, its weights made on the card as `run` makes them."""
    from gpu.compare import weights_made_on_the_card

    from vlmtune.data.run_data import MeasuredRows
    from vlmtune.estimate import run as module
    from vlmtune.estimate.given_rows import GivenRows
    from vlmtune.estimate.simulate import simulation
    from vlmtune.hardware.at_hand import target_at_hand

    _, plan, source, samples = prepared(folder, changes)
    simulation.loading_of = lambda plan: weights_made_on_the_card
    report = module.estimate_plan(plan, source, GivenRows(MeasuredRows(samples)), target_at_hand())
    return {
        "estimated_reserved_bytes": report.peak_reserved_bytes,
        "estimated_allocated_bytes": report.peak_allocated_bytes,
        "estimate_s": report.seconds,
    }


def run(folder: Path, changes: dict) -> dict:
    """Train in this process with these values and return what it took."""
    from rich.console import Console

    from vlmtune.data.run_data import MeasuredRows, RunData
    from vlmtune.engine import train as engine
    from vlmtune.engine.monitor import LiveView
    from vlmtune.models import build
    from vlmtune.plan.file import save_plan
    from vlmtune.runs.folder import RunFolder

    config, plan, source, samples = prepared(folder, changes)

    def made(plan, **how) -> torch.nn.Module:
        torch.manual_seed(0)
        return made_on_the_card(plan)

    build.load_base = made
    engine.check_checkpoint = lambda plan: {}  # there are no files to check
    clock, services = Clock((plan.max_steps - 2,), warm_up=WARM_UP), engine._services
    engine._services = lambda plan, run_folder: [*services(plan, run_folder), clock]
    runs = RunFolder.create(config.run_dir)
    save_plan(plan, runs.plan)
    with LiveView("packing", Console(file=open(os.devnull, "w"))) as view:  # noqa: SIM115
        report = engine.train(plan, source, RunData(MeasuredRows(samples), MeasuredRows([])), runs, view)
    return {
        **clock.figures(ROWS_PER_STEP),
        "reserved_bytes": report.peak_reserved_bytes,
        "allocated_bytes": report.peak_allocated_bytes,
        "data_wait_share": report.data_wait_share,
        "tokens_per_row": (report.text_tokens + report.image_tokens) / report.num_rows,
        "losses": [record.loss for record in runs.read_log()],
        "gpu": report.gpu,
    }


def arrangements(batches: list[int], packs: list[int]) -> list[dict]:
    """Return what each run changes: batches, and packs; the largest batch and all packs with attention both ways."""

    def run(training: dict, varlen: bool, is_long: bool) -> dict:
        steps = {"max_steps": MANY_STEPS if is_long else FEW_STEPS}
        return {"training": training | steps, "hardware": {"varlen_attention": varlen}}

    runs = []
    for size in sorted(packs, reverse=True):
        training = {"batch_size": 1, "gradient_accumulation_steps": ROWS_PER_STEP, "packing": True, "pack_tokens": size}
        runs += [run(training, varlen, size == max(packs)) for varlen in (True, False)]
    for size in sorted(batches, reverse=True):
        training = {"batch_size": size, "gradient_accumulation_steps": ROWS_PER_STEP // size}
        runs.append(run(training, False, size == max(batches)))
        runs += [run(training, True, False)] if size == max(batches) else []
    return runs


def main(out: Path, catalogue: Path, model: str, every: list[dict], with_estimates: bool) -> None:
    """Write each run's figures to `out` as soon as they are there."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(Case("packing", model), catalogue, folder)
        write_rows(folder / "short.jsonl", ROWS, PICTURE_PX, CHARS)
        started_estimates = [started("estimate", folder, *one) for one in enumerate(every)] if with_estimates else []
        expected = [ended(*one) for one in started_estimates] or [{}] * len(every)
        for number, changes in enumerate(every):
            took = ended(*started("run", folder, number, changes))
            found.append({**changes, **expected[number], **took})
            known = {"model": model, "rows_per_step": ROWS_PER_STEP, "versions": library_versions(), "runs": found}
            out.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
            print(json.dumps({key: value for key, value in found[-1].items() if key != "losses"}), flush=True)


def started(what: str, folder: Path, number: int, changes: dict) -> tuple[subprocess.Popen, Path]:
    """Return the process that does it, and where its result will be."""
    result = folder / f"{what}-{number}.json"
    command = [sys.executable, __file__, f"--{what}", str(folder), json.dumps(changes), str(result)]
    with (folder / f"{what}-{number}.txt").open("w") as said:
        return subprocess.Popen(command, stderr=said), result


def ended(process: subprocess.Popen, result: Path) -> dict:
    """Return the result of a process, or the end of what it said."""
    if process.wait() == 0:
        return json.loads(result.read_text(encoding="utf-8"))
    return {f"{result.stem}_error": result.with_suffix(".txt").read_text()[-2000:]}


if __name__ == "__main__":
    if sys.argv[1] in ("--run", "--estimate"):
        kind, where, values, target = sys.argv[1:]
        done = (run if kind == "--run" else estimate)(Path(where), json.loads(values))
        Path(target).write_text(json.dumps(done), encoding="utf-8")
    else:
        parser = argparse.ArgumentParser()
        parser.add_argument("out", type=Path)
        parser.add_argument("catalogue", type=Path, nargs="?", default=ROOT / "vlmtune/catalog")
        parser.add_argument("--model", default=QWEN25_3B, help="folder in the catalogue")
        parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
        parser.add_argument("--packs", type=int, nargs="+", default=PACKS)
        parser.add_argument("--no-estimates", action="store_true", help="they take a minute, on the processor")
        asked = parser.parse_args()
        every = arrangements(asked.batches, asked.packs)
        main(asked.out, asked.catalogue, asked.model, every, not asked.no_estimates)
