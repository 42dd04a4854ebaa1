"""Peaks of main memory in real runs beside their estimates: `make bench-memory`, or this script with names of cases.

Models have their real widths, a few layers and random weights in bf16 files. A run is the real trainer in a process of
its own; its pages and those of its data workers are counted from outside, many times a second. Pages of mapped weight
files are left out, as in the estimate. On a CPU what a card would hold is in main memory too: there the estimate of a
step's activations, which is made for a card, is added to that of main memory.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from vlmtune.data.run_data import MeasuredRows
    from vlmtune.hub.source import ModelSource
    from vlmtune.plan.types import RunPlan

sys.path.insert(0, str(Path(__file__).parents[1]))

CATALOGUE = Path(__file__).parents[2] / "vlmtune" / "catalog"
INTERVAL_S = 0.03
WEIGHT_FILES = ".safetensors"


@dataclass(frozen=True)
class Short:
    """A model of the catalogue with fewer layers, and a run of it."""

    name: str
    model: str
    """Folder name in the catalogue."""
    text_layers: int
    vision_layers: int
    settings: dict = field(default_factory=dict)
    image_px: tuple[int, int] = (224, 224)


QWEN3, SMOL = "Qwen__Qwen3-VL-2B-Instruct", "HuggingFaceTB__SmolVLM2-2.2B-Instruct"
LORA = {"training.method": "lora"}
ONE_TILE = {"data.image_size": 384}
IMAGES = {"data.image_size": 768, "training.gradient_accumulation_steps": 8}
CASES = (
    Short("smol-lora", SMOL, 4, 4, LORA | ONE_TILE),
    Short("smol-workers", SMOL, 4, 4, LORA | ONE_TILE | {"hardware.num_workers": 2}),
    Short("smol-images", SMOL, 1, 1, LORA | IMAGES, image_px=(768, 768)),
    Short("smol-full", SMOL, 1, 1, ONE_TILE | {"training.method": "full"}),
    Short("qwen3-qlora", QWEN3, 4, 4),
    Short("qwen3-lora", QWEN3, 4, 4, LORA),
    Short("gemma-qlora", "google__gemma-3-4b-it", 2, 1),
    Short("pali-lora", "google__paligemma-3b-pt-224", 2, 2, LORA),
    Short("llava-qlora", "llava-hf__llava-1.5-7b-hf", 2, 2),
    Short("qwen25-7b-qlora", "Qwen__Qwen2.5-VL-7B-Instruct", 1, 2),
)
"""Steps of one row or a few: what is measured does not grow with their number, and a CPU is slow."""
STEPS = {"training.max_steps": 2, "training.gradient_accumulation_steps": 1}


def main(names: list[str]) -> None:
    """Measure the cases named, or all, and print a line for each."""
    table = Table("case", "weights, GiB", "estimated", "measured", "off", box=None)
    for case in CASES:
        if names and case.name not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            run = [sys.executable, __file__, "--one", case.name, folder]
            made = subprocess.run([*run, "make"], capture_output=True, text=True, check=True)
            facts = json.loads(made.stdout.splitlines()[-1])
            measured_bytes = _peak_of([*run, "train"])
        estimated_bytes = facts["estimated_bytes"]
        sizes = (facts["weight_bytes"], estimated_bytes, measured_bytes)
        row = [case.name, *(f"{num_bytes / 2**30:.2f}" for num_bytes in sizes)]
        table.add_row(*row, f"{estimated_bytes / measured_bytes - 1:+.1%}")
        print(*row, f"{estimated_bytes / measured_bytes - 1:+.1%}", facts["parts"], flush=True)
    Console().print(table)


def _peak_of(command: list[str]) -> int:
    """Run a command and return the most that it and its children held at a time, without pages of weight files."""
    most = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            first, *children = _with_children(process.pid)
            most = max(most, _held_bytes(first) + sum(_held_bytes(child, files=False) for child in children))
            time.sleep(INTERVAL_S)
        if process.returncode:
            raise SystemExit(process.stderr.read()[-2000:])
    return most


def _with_children(pid: int) -> Iterator[int]:
    yield pid
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = tasks.read_text().split()
        except OSError:  # ended meanwhile
            continue
        for child in children:
            yield from _with_children(int(child))


def _held_bytes(pid: int, *, files: bool = True) -> int:
    """Return what a process has in memory, without pages of weight files.

    Of pages of files (libraries) all that it has, however many processes have them too, and none of a child's, which
    are its parent's as well; of other pages its share (Pss).
    """
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    except OSError:
        return 0
    kib, path = 0, ""
    for line in lines:
        if line[0] in "0123456789abcdef":
            path = line.split(maxsplit=5)[5] if " /" in line and " /dev/" not in line else ""
        elif line.startswith("Rss:" if path else "Pss:") and not path.endswith(WEIGHT_FILES) and (files or not path):
            kib += int(line.split()[1])
    return kib * 1024


def _one(case: Short, folder: Path, task: str) -> None:
    """Make the model's files and print the estimate, or train."""
    from vlmtune.engine.runtime import prepare_environment, quiet_libraries

    prepare_environment()
    quiet_libraries()
    from gpu.cases import Case, config_of, prepare

    from vlmtune.data.run_data import MeasuredRows
    from vlmtune.data.samples import read_samples
    from vlmtune.engine.runtime import probe_device
    from vlmtune.hub.source import open_model
    from vlmtune.plan.decide import make_plan

    whole = Case(case.name, case.model, 60, case.image_px, settings=STEPS | case.settings, rows=16)
    if task == "make":
        prepare(whole, CATALOGUE, folder)
        _shorten(folder / "model" / "config.json", case)
        _write_weights(folder / "model")
    config = config_of(whole, folder)
    source = open_model(config.model.name, None, folder)
    plan = make_plan(config, source, probe_device())
    rows = MeasuredRows(read_samples(folder / "rows.jsonl").samples)
    if task == "make":
        print(json.dumps(_estimated(plan, source, rows)))
    else:
        _train(plan, source, rows, config.run_dir)


def _shorten(path: Path, case: Short) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    text, vision = config.get("text_config", config), config["vision_config"]
    text["num_hidden_layers"] = case.text_layers
    for key in ("num_hidden_layers", "depth"):
        if key in vision:
            vision[key] = case.vision_layers
    if "deepstack_visual_indexes" in vision:
        vision["deepstack_visual_indexes"] = list(range(min(3, case.vision_layers)))
    text.pop("layer_types", None)
    path.write_text(json.dumps(config), encoding="utf-8")


def _write_weights(folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    (folder / "model.safetensors").unlink()
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="500MB")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == "bfloat16"


def _estimated(plan: "RunPlan", source: "ModelSource", rows: "MeasuredRows") -> dict:
    from vlmtune.estimate.given_rows import GivenRows
    from vlmtune.estimate.run import estimate_plan
    from vlmtune.hardware.cards import Target, find_card

    need = estimate_plan(plan, source, GivenRows(rows), Target(find_card("48gb"), 0, True), fast=True).main_memory
    files = Path(plan.model).glob(f"*{WEIGHT_FILES}")
    return {
        "estimated_bytes": need.peak_bytes,
        "weight_bytes": sum(file.stat().st_size for file in files),
        "parts": {part.name: round(part.bytes / 2**20) for part in need.parts},
    }


def _train(plan: "RunPlan", source: "ModelSource", rows: "MeasuredRows", run_dir: Path) -> None:
    from vlmtune.data.run_data import MeasuredRows, RunData
    from vlmtune.engine.monitor import LiveView
    from vlmtune.engine.train import train
    from vlmtune.plan.file import save_plan
    from vlmtune.runs.folder import RunFolder

    folder = RunFolder.create(run_dir)
    save_plan(plan, folder.plan)
    with open(os.devnull, "w") as nowhere, LiveView("run", Console(file=nowhere)) as view:
        train(plan, source, RunData(rows, MeasuredRows([])), folder, view)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        name, folder, task = sys.argv[2:]
        _one(next(case for case in CASES if case.name == name), Path(folder), task)
    else:
        main(sys.argv[1:])
