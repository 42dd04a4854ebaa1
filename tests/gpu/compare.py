"""Estimates the measured runs without a GPU and writes how far off they are: `make gpu-errors`.

With the versions of torch and transformers that were measured: a model's code changes from version to version, and the
estimate with it. Runs that make their weights on the card (measure.py) have them made in the same way here.
"""

import json
import math
import statistics
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu.cases import (
    BLIND,
    BLIND_UNEVEN,
    CASES,
    GRAPHS,
    HEADS_AND_FILES,
    LEVERS,
    LONG_TOGETHER,
    SPEED_LEVERS,
    TOGETHER,
    UNSEEN,
    VARLEN_ATTENTION,
    Case,
    prepare,
)  # noqa: E402

from vlmtune.data.batches.packs import collate_of  # noqa: E402
from vlmtune.data.collate import Collator  # noqa: E402
from vlmtune.data.dataset import TuneDataset  # noqa: E402
from vlmtune.data.run_data import MeasuredRows  # noqa: E402
from vlmtune.estimate.allocator.caching import AllocatorSettings, Replay, replay  # noqa: E402
from vlmtune.estimate.features import rows_in_training  # noqa: E402
from vlmtune.estimate.learned import learned_of  # noqa: E402
from vlmtune.estimate.simulate.cuda import hidden_of  # noqa: E402
from vlmtune.estimate.simulate.record import Log, Recorder  # noqa: E402
from vlmtune.estimate.simulate.simulation import Load, Run, simulate  # noqa: E402
from vlmtune.estimate.simulate.steps import Learned, RowBatches, collated, fewest_steps, telling_steps  # noqa: E402
from vlmtune.estimate.simulate.weights import (  # noqa: E402
    DYNAMIC_MAP_BYTES,
    add_adapters,
    add_stream_buffers,
    loading_of,
    quantise,
)
from vlmtune.models.build import base_of, family_of  # noqa: E402
from vlmtune.models.processor import load_processor  # noqa: E402
from vlmtune.plan.decide import make_plan  # noqa: E402
from vlmtune.plan.types import Device, RunPlan
from vlmtune.runs.versions import library_versions  # noqa: E402

MEASURED = Path(__file__).parent / "measured"
CATALOGUE = Path(__file__).parents[2] / "vlmtune" / "catalog"
BLIND_UNEVEN_NAMES = {case.name for case in BLIND_UNEVEN}
TOGETHER_NAMES = {case.name for case in (*TOGETHER, *LONG_TOGETHER)}
HOPPER, H100_SMS = (9, 0), 132


def measured_runs() -> dict[str, dict]:
    """Return each measured run by the name of its case."""
    files = [json.loads((MEASURED / name).read_text()) for name in ("peaks.json", "graphs-peaks.json")]
    return {run["case"]: run for file in files for run in file["runs"]}


@dataclass(frozen=True)
class Prepared:
    """A case's plan and rows: what logs are simulated from."""

    plan: RunPlan
    lengths: list[int]
    learned: Learned
    rows: TuneDataset
    collator: Collator
    load: Load
    expandable: bool

    def log(self) -> Log:
        """Return what `estimate-vram` takes the run to allocate."""
        return self.simulated(telling_steps(self.plan, self.lengths, self.expandable, learned=self.learned))

    def fast_log(self) -> Log:
        """Return what `--fast` takes it to allocate."""
        return self.simulated(fewest_steps(self.plan, self.lengths, learned=self.learned), repeat=True)

    def simulated(self, steps: RowBatches, repeat: bool = False) -> Log:
        """Return what these steps allocate and launch."""
        rows, tower = rows_in_training(self.rows, self.plan)
        batches = collated(steps, rows, collate_of(self.plan, self.collator))
        form = tower.form if tower else None
        return simulate(self.plan, Run(batches, hidden_of(HOPPER, H100_SMS), self.load, form=form, repeat=repeat))


def prepared(case: Case, folder: Path) -> Prepared:
    """Return the case's plan and rows."""
    config, source, samples = prepare(case, CATALOGUE, folder)
    plan = make_plan(config, source, Device("cuda", "H100", True))
    processor, family = load_processor(plan), family_of(plan)
    lengths = MeasuredRows(samples).lengths(processor, family, plan, source)
    learned = learned_of(lengths, plan, source.facts(plan.model_name))
    rows = TuneDataset(samples, processor, family, plan)
    load = loading_of(plan) if case.from_checkpoint else weights_made_on_the_card
    return Prepared(plan, lengths.total.tolist(), learned, rows, Collator(processor), load, case.expandable)


def replay_of(case: Case, log: Log) -> Replay:
    """Return what the allocator shows for the log in the case's mode."""
    return replay(log.events, AllocatorSettings(expandable_segments=case.expandable))


def weights_made_on_the_card(model: nn.Module, recorder: Recorder) -> None:
    """Record what `measure.random_weights` allocates, then PEFT's adapters."""
    from bitsandbytes.nn import Linear4bit

    add_stream_buffers(base_of(model), recorder)
    recorder.allocate(DYNAMIC_MAP_BYTES, "load", "create_dynamic_map")
    known: set[int] = set()
    values = value = 0
    for name, module in base_of(model).named_modules():
        if ".lora_" in name:
            continue
        if isinstance(module, Linear4bit):
            num_bytes = 2 * module.in_features * module.out_features
            values = _renewed(values, num_bytes, recorder)
            for handle in quantise(module.weight, "weights", recorder):
                recorder.free(handle)
        for tensor in _plain(module, recorder):
            num_bytes = tensor.untyped_storage().nbytes()
            if id(tensor) in known:  # a tied head gets numbers of its own until the end
                value = _renewed(0, num_bytes, recorder)
            else:
                _made(tensor, recorder)
            known.add(id(tensor))
        for buffer in module.buffers(recurse=False):
            recorder.add(buffer, "weights", "ones")
    for handle in (values, value):
        if handle:
            recorder.free(handle)
    add_adapters(model, recorder)


def _made(tensor: Tensor, recorder: Recorder) -> None:
    if not tensor.is_floating_point():  # a head in 8 bits
        recorder.add(tensor, "weights", "randint")
        return
    recorder.add(tensor, "weights", "randn")


def _renewed(old: int, num_bytes: int, recorder: Recorder) -> int:
    """`new = torch.randn(...).mul_(0.02)` over an old one of the same name."""
    new = recorder.allocate(num_bytes, "load", "randn")
    if old:
        recorder.free(old)
    return new


def _plain(module: nn.Module, recorder: Recorder) -> list:
    own = [tensor for tensor in module.parameters(recurse=False) if not recorder.main_memory.holds(tensor)]
    return [tensor for tensor in own if getattr(tensor, "quant_state", None) is None]


@dataclass(frozen=True)
class Errors:
    """Estimate against measurement, in percent; below zero the estimate is too low."""

    case: Case
    allocated: float
    reserved: float
    fast: float
    """Reserved memory by `--fast`; no number where it was not asked for."""


def errors_of(case: Case, *, fast: bool = True) -> Errors:
    """Estimate a measured run anew, `fast` too."""
    run = measured_runs()[case.name]
    with tempfile.TemporaryDirectory() as folder:
        made = prepared(case, Path(folder))
        shown = replay_of(case, made.log())
        quick_bytes = replay_of(case, made.fast_log()).peak_reserved_bytes if fast else math.nan
    return Errors(
        case,
        allocated=100 * (shown.peak_allocated_bytes / run["allocated_bytes"] - 1),
        reserved=100 * (shown.peak_reserved_bytes / run["reserved_bytes"] - 1),
        fast=100 * (quick_bytes / run["reserved_bytes"] - 1),
    )


def table_of(errors: list[Errors]) -> str:
    """Return the errors as Markdown: by kind of run and by model first, then every run."""
    measured = json.loads((MEASURED / "peaks.json").read_text())["versions"]
    head = (
        "| Runs | Number | Reserved: median size | 95th percentile | Lowest | Highest | Allocated: lowest | Highest "
        "| Fast: lowest | Highest |",
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: |",
    )
    lines = [
        "# Estimated against measured peaks",
        "",
        f"Measured on {_cards()},",
        f"with {_named(measured)}; estimated with",
        f"{_named(library_versions())}; written by `make gpu-errors`. In percent of the",
        "measured peak, below zero where the estimate is too low. Fast: reserved by `--fast`. Some epochs: 14 steps",
        "over 24 rows of many lengths and image sizes; uneven: 12 steps over such rows. The first rules come from",
        "the traces of two runs, qwen3-2b-native and llava-7b; 13 runs with dropout and full tuning, then 4 of",
        "uneven rows and three native ones (smol-2b, llava-7b-epochs, qwen25-3b-epochs), were seen when rules were",
        "added: autocast, dropout, sums, norms, layer norms, grouped heads, addresses of code, how many batches are",
        "simulated. Models called unseen and runs called blind had no rule changed for them when they were measured",
        "first. All were measured anew on 27 November 2026, after a rule had been added: of qwen25-3b,",
        "gemma4-e4b-embeddings and mistral-24b, what the first bias takes; 175 of them again the day after, by the",
        "code that estimates them here, and nine had changed by more than 0.01 %, as code had. The runs with",
        "memory and speed levers together were predicted before: 32 of 33 within 1 % (-0.99 to +0.79), one 1.33 %",
        "too high, and allocated within 0.22. Two rules came after them: patches of towers (smol-2b-native,",
        "granite-2b-uneven-native) and where code lies (all native runs). Before, one of 195 had been more than 1",
        "% low: qwen25-7b-away-streamed-native, by 1.11. Why was not found; its weights were made in another way",
        "then.",
        "",
        *head,
        _line("all", errors),
        _line("expandable segments", [e for e in errors if e.case.expandable]),
        _line("native segments", [e for e in errors if not e.case.expandable]),
        _line("weights from files", [e for e in errors if e.case.from_checkpoint]),
        _line("unseen models", [e for e in errors if e.case.name in UNSEEN]),
        _line("some epochs, uneven", [e for e in errors if e.case.mixed_images]),
        _line("dropout", [e for e in errors if "dropout" in e.case.name]),
        _line("full tuning", [e for e in errors if "full" in e.case.name]),
        _line("blind: dropout and full tuning", [e for e in errors if e.case in BLIND]),
        _line("memory and speed levers", [e for e in errors if e.case in LEVERS]),
        _line("of these: head in 8 bits, files in 4", [e for e in errors if e.case in HEADS_AND_FILES]),
        _line("of these: lean adapters, packs", [e for e in errors if e.case in SPEED_LEVERS]),
        _line("of these: one attention call", [e for e in errors if e.case in VARLEN_ATTENTION]),
        _line("of these: of memory and of speed together", [e for e in errors if e.case.name in TOGETHER_NAMES]),
        _line("blind: uneven rows over native segments", [e for e in errors if e.case.name in BLIND_UNEVEN_NAMES]),
    ]
    for family in dict.fromkeys(e.case.model for e in errors):
        lines.append(_line(family.split("__")[1], [e for e in errors if e.case.model == family]))
    lines += ["", "| Run | Allocated | Reserved | Fast |", "| --- | --: | --: | --: |"]
    lines += [_row(e) for e in errors]
    return "\n".join(lines) + "\n"


def _row(errors: Errors) -> str:
    return f"| {errors.case.name} | {errors.allocated:+.2f} | {errors.reserved:+.2f} | {errors.fast:+.2f} |"


def _cards() -> str:
    runs = measured_runs()
    cards = Counter(runs[case.name]["gpu"] for case in CASES)
    return " and ".join(f"one {card} ({number} runs)" for card, number in cards.most_common())


def _named(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "peft", "bitsandbytes"))


def _line(name: str, errors: list[Errors]) -> str:
    sizes = sorted(abs(e.reserved) for e in errors)
    at_95 = sizes[math.ceil(0.95 * len(sizes)) - 1]
    columns = [[getattr(e, name) for e in errors] for name in ("reserved", "allocated", "fast")]
    cells = [edge(column) for column in columns for edge in (min, max)]
    shown = " | ".join(f"{cell:+.2f}" for cell in cells)
    return f"| {name} | {len(errors)} | {statistics.median(sizes):.2f} | {at_95:.2f} | {shown} |"


def main(names: list[str]) -> None:
    """Print the named cases' errors; without names, estimate all of them and write the table."""
    cases = [case for case in (*CASES, *GRAPHS) if case.name in names] if names else CASES
    errors = {}
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for made in pool.map(errors_of, cases):
            errors[made.case.name] = made
            shown = [f"{value:+6.2f}" for value in (made.allocated, made.reserved, made.fast)]
            print(f"{made.case.name:28}", *shown, flush=True)
    if not names:
        (MEASURED / "errors.md").write_text(table_of([errors[case.name] for case in CASES]), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
