"""Estimates the measured runs without a GPU and writes how far off they are: `python tests/gpu/compare.py`.

The measured runs make their weights on the card (measure.py), so the estimate loads them in the same way here.
"""

import json
import math
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu.cases import CASES, UNSEEN, Case, prepare  # noqa: E402

from vlmtune.data.collate import Collator  # noqa: E402
from vlmtune.data.dataset import TuneDataset, measure_rows  # noqa: E402
from vlmtune.estimate.allocator import AllocatorSettings, Replay, replay  # noqa: E402
from vlmtune.estimate.cuda import hidden_of  # noqa: E402
from vlmtune.estimate.load import DYNAMIC_MAP_BYTES, add_adapters, load_checkpoint, quantise  # noqa: E402
from vlmtune.estimate.record import Log, Recorder  # noqa: E402
from vlmtune.estimate.simulate import Load, Run, Steps, simulate  # noqa: E402
from vlmtune.estimate.steps import first_steps, two_lengths  # noqa: E402
from vlmtune.models.build import base_of, family_of  # noqa: E402
from vlmtune.models.processor import load_processor  # noqa: E402
from vlmtune.plan import Device, RunPlan, make_plan  # noqa: E402

MEASURED = Path(__file__).parent / "measured"
CATALOGUE = Path(__file__).parents[2] / "vlmtune" / "models" / "catalog"
HOPPER = (9, 0)


def measured_runs() -> dict[str, dict]:
    """Return each measured run by the name of its case."""
    return {run["case"]: run for run in json.loads((MEASURED / "h100.json").read_text())["runs"]}


@dataclass(frozen=True)
class Simulated:
    """A case's plan and its batches: what a log is simulated from."""

    plan: RunPlan
    steps: Steps
    load: Load

    def log(self) -> Log:
        """Return what the run allocates, its rows in the order of the trainer."""
        return simulate(self.plan, Run(self.steps, hidden_of(HOPPER), self.load))

    def fast_log(self) -> Log:
        """Return what `estimate-vram --fast` takes it to allocate."""
        batches = sorted((batch for step in self.steps for batch in step), key=lambda batch: batch["labels"].shape[1])
        steps = two_lengths(self.plan, batches[-1], batches[len(batches) // 2])
        return simulate(self.plan, Run(steps, hidden_of(HOPPER), self.load, repeat=True))


def simulated(case: Case, folder: Path) -> Simulated:
    """Return the case's plan and batches."""
    config, source, samples = prepare(case, CATALOGUE, folder)
    plan = make_plan(config, source, Device("cuda", "H100", True))
    processor, family = load_processor(plan), family_of(plan)
    lengths = [row.total for row in measure_rows(samples, processor, family, plan, source)]
    steps = first_steps(plan, TuneDataset(samples, processor, family, plan), lengths, Collator(processor))
    return Simulated(plan, steps, load_checkpoint if case.from_checkpoint else weights_made_on_the_card)


def replay_of(case: Case, log: Log) -> Replay:
    """Return what the allocator shows for the log in the case's mode."""
    return replay(log.events, AllocatorSettings(expandable_segments=case.expandable))


def weights_made_on_the_card(model: nn.Module, recorder: Recorder) -> None:
    """Record what `measure.random_weights` allocates, then PEFT's adapters."""
    from bitsandbytes.nn import Linear4bit

    recorder.allocate(DYNAMIC_MAP_BYTES, "load", "create_dynamic_map")
    known: set[int] = set()
    values = value = 0
    for name, module in base_of(model).named_modules():
        if ".lora_" in name:
            continue
        if isinstance(module, Linear4bit):
            num_bytes = 2 * module.in_features * module.out_features
            values = _renewed(values, num_bytes, recorder)
            quantise(module.weight, "weights", recorder)
        for tensor in _plain(module):
            num_bytes = tensor.untyped_storage().nbytes()
            if id(tensor) in known:  # a tied head gets numbers of its own until the end
                value = _renewed(0, num_bytes, recorder)
            else:
                raw = recorder.allocate(num_bytes, "load", "randn")
                recorder.add(tensor, "weights", "mul")
                recorder.free(raw)
            known.add(id(tensor))
        for buffer in module.buffers(recurse=False):
            recorder.add(buffer, "weights", "ones")
    for handle in (values, value):
        if handle:
            recorder.free(handle)
    add_adapters(model, recorder)


def _renewed(old: int, num_bytes: int, recorder: Recorder) -> int:
    """`new = torch.randn(...) * 0.02` over an old one of the same name."""
    raw = recorder.allocate(num_bytes, "load", "randn")
    new = recorder.allocate(num_bytes, "load", "mul")
    recorder.free(raw)
    if old:
        recorder.free(old)
    return new


def _plain(module: nn.Module) -> list:
    return [p for p in module.parameters(recurse=False) if getattr(p, "quant_state", None) is None]


@dataclass(frozen=True)
class Errors:
    """Estimate against measurement, in percent; below zero the estimate is too low."""

    case: Case
    allocated: float
    reserved: float
    fast: float
    """Reserved memory by `--fast`."""


def errors_of(case: Case) -> Errors:
    """Estimate a measured run anew."""
    run = measured_runs()[case.name]
    with tempfile.TemporaryDirectory() as folder:
        made = simulated(case, Path(folder))
        shown = replay_of(case, made.log())
        fast = replay_of(case, made.fast_log())
    return Errors(
        case,
        allocated=100 * (shown.peak_allocated_bytes / run["allocated_bytes"] - 1),
        reserved=100 * (shown.peak_reserved_bytes / run["reserved_bytes"] - 1),
        fast=100 * (fast.peak_reserved_bytes / run["reserved_bytes"] - 1),
    )


def table_of(errors: list[Errors]) -> str:
    """Return the errors as Markdown: by kind of run and by model first, then every run."""
    lines = [
        "# Estimated against measured peaks",
        "",
        "NVIDIA H100, torch 2.11, transformers 5.17, bitsandbytes 0.50; written by `python tests/gpu/compare.py`. In",
        "percent of the measured peak, below zero where the estimate is too low. Fast: reserved by `--fast`. The rules",
        "come from the traces of two runs, qwen3-2b-native and llava-7b; no rule was changed for the models called",
        "unseen, which were measured once, after the rules were there.",
        "",
        "| Runs | Number | Reserved: median size | 95th percentile | Lowest | Highest | Allocated: lowest | Highest "
        "| Fast: lowest | Highest |",
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: |",
        _line("all", errors),
        _line("expandable segments", [e for e in errors if e.case.expandable]),
        _line("native segments", [e for e in errors if not e.case.expandable]),
        _line("weights from files", [e for e in errors if e.case.from_checkpoint]),
        _line("unseen models", [e for e in errors if e.case.name in UNSEEN]),
    ]
    for family in dict.fromkeys(e.case.model for e in errors):
        lines.append(_line(family.split("__")[1], [e for e in errors if e.case.model == family]))
    lines += ["", "| Run | Allocated | Reserved | Fast |", "| --- | --: | --: | --: |"]
    lines += [f"| {e.case.name} | {e.allocated:+.2f} | {e.reserved:+.2f} | {e.fast:+.2f} |" for e in errors]
    return "\n".join(lines) + "\n"


def _line(name: str, errors: list[Errors]) -> str:
    sizes = sorted(abs(e.reserved) for e in errors)
    at_95 = sizes[math.ceil(0.95 * len(sizes)) - 1]
    columns = [[getattr(e, name) for e in errors] for name in ("reserved", "allocated", "fast")]
    cells = [edge(column) for column in columns for edge in (min, max)]
    shown = " | ".join(f"{cell:+.2f}" for cell in cells)
    return f"| {name} | {len(errors)} | {statistics.median(sizes):.2f} | {at_95:.2f} | {shown} |"


def main(names: list[str]) -> None:
    """Print the named cases' errors; without names, estimate all of them and write the table."""
    errors = []
    for case in CASES:
        if not names or case.name in names:
            errors.append(errors_of(case))
            shown = [f"{value:+6.2f}" for value in (errors[-1].allocated, errors[-1].reserved, errors[-1].fast)]
            print(f"{case.name:24}", *shown, flush=True)
    if not names:
        (MEASURED / "errors.md").write_text(table_of(errors), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
