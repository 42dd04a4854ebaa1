"""Runs the cases on the GPUs at hand and writes what the allocator showed: `make gpu`.

Each case is the real trainer in a process of its own, several at a time on each GPU: what one process allocates does
not depend on the others. Weights are random: made on the card, layer by layer, or written to files first and loaded
from there.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue

import torch
from rich.console import Console
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu.ballast import beside_ballast  # noqa: E402
from gpu.cases import CASES, GRAPHS, SMALL, Case, prepare  # noqa: E402
from gpu.history import Marks, archive, packed, record  # noqa: E402

from vlmtune.plan.types import RunPlan  # noqa: E402
from vlmtune.runs.versions import library_versions  # noqa: E402

AT_A_TIME = 8
HISTORY = ".history.xz"


def made_on_the_card(plan: RunPlan) -> nn.Module:
    """Return a plan's base model with random weights, the same in all processes of a run."""
    from vlmtune.models import build
    from vlmtune.models.layers import placed

    model = build.weightless_base(plan)
    placed.prepare(model, plan, build.family_of(plan), plan.device, placed.PEERS.get())
    torch.manual_seed(0)
    random_weights(model, plan.device)
    placed.start(model)
    return model


def random_weights(model: nn.Module, device: str) -> nn.Module:
    """Give a weightless model storage on `device`, in the order of its modules, and random numbers."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    from vlmtune.models.streaming import stream_of

    stream = stream_of(model)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            state = module.weight.quant_state
            values = torch.randn(state.shape, dtype=state.dtype, device=device).mul_(0.02)
            module.weight = Params4bit(
                values,
                requires_grad=False,
                blocksize=64,
                compress_statistics=state.nested,
                quant_type=state.quant_type,
            ).to(device)
            module.quant_state = module.weight.quant_state
            if stream and module in stream.places:
                stream.adopt(module)
            names = ["bias"] if module.bias is not None else []
        else:
            names = [name for name, _ in module.named_parameters(recurse=False)]
        for name in names:
            old = getattr(module, name)
            value = _random(old, device) if old.is_meta else _in_main_memory(old)
            setattr(module, name, nn.Parameter(value, requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            where = device if buffer.is_meta else "cpu"
            setattr(module, name, torch.ones(buffer.shape, dtype=buffer.dtype, device=where))
    model.tie_weights()
    return model


def _random(old: torch.Tensor, device: str) -> torch.Tensor:
    if not old.is_floating_point():  # a head in 8 bits
        return torch.randint(-127, 128, old.shape, dtype=old.dtype, device=device)
    return torch.randn(old.shape, dtype=old.dtype, device=device).mul_(0.02)  # a copy of a head may be too large


def _in_main_memory(old: torch.Tensor) -> torch.Tensor:
    """Return random rows, which repeat: a table of billions of numbers would take a minute."""
    rows = torch.randn(1024, *old.shape[1:], dtype=old.dtype) * 0.02
    return rows.repeat(-(-len(old) // len(rows)), 1)[: len(old)]


def run(case: Case, catalogue: Path, out: Path, cap_bytes: int | None = None, history: bool = False) -> None:
    """Train the case and write `out`.

    With a cap the process may not reserve more than that once the model is there, and a ballast process takes what the
    card has beyond it: what fits the cap by its own count only would fail.
    """
    from vlmtune.data.features import prepare as features
    from vlmtune.data.run_data import MeasuredRows, RunData
    from vlmtune.engine import train as engine
    from vlmtune.engine.monitor import LiveView
    from vlmtune.engine.oom import OutOfMemory
    from vlmtune.engine.runtime import probe_device, quiet_libraries
    from vlmtune.models import build
    from vlmtune.plan.decide import make_plan
    from vlmtune.plan.file import save_plan
    from vlmtune.runs.folder import RunFolder

    quiet_libraries()
    _, total = torch.cuda.mem_get_info()
    loaded: dict[str, int] = {}

    def build_model(plan, **how):
        model = build.build_model(plan, **how)
        loaded["load_peak_bytes"] = torch.cuda.max_memory_allocated()
        if cap_bytes is not None:
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(cap_bytes / total)
            loaded["free_beside_ballast_bytes"] = ballast.enter_context(beside_ballast(cap_bytes))
        return model

    engine.build_model = build_model

    def encoded() -> None:
        loaded["encoding_reserved_bytes"] = torch.cuda.max_memory_reserved()
        free_card()
        torch.cuda.reset_peak_memory_stats()

    free_card, features.free_card = features.free_card, encoded
    marks = Marks()
    if history:
        services = engine._services
        engine._services = lambda plan, folder: [*services(plan, folder), marks]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as ballast:
        os.environ["XDG_CACHE_HOME"] = folder
        config, source, samples = prepare(case, catalogue, Path(folder))
        if case.from_checkpoint:
            written = ["--packed" if case.packed else "--weights", config.model.name]
            subprocess.run([sys.executable, __file__, *written], check=True)
        else:
            build.load_base = lambda plan, **how: made_on_the_card(plan)
            engine.check_checkpoint = lambda plan: {}  # there are no files to check
        plan = make_plan(config, source, probe_device())
        if plan.method == "full":  # gigabytes of random numbers that nobody reads
            engine.save_tuned = engine.TuneTrainer._save_checkpoint = lambda *args: None
            engine.write_card = lambda *args, **how: None  # of what was not saved
        runs = RunFolder.create(config.run_dir)
        save_plan(plan, runs.plan)
        started = time.perf_counter()
        if history:
            record(stacks=False)
        try:
            with LiveView(case.name, Console(file=open(os.devnull, "w"))) as view:  # noqa: SIM115
                report = engine.train(plan, source, RunData(MeasuredRows(samples), MeasuredRows([])), runs, view)
        except OutOfMemory:
            out.write_text(json.dumps({"case": case.name, "out_of_memory": True}), encoding="utf-8")
            return
        losses = [record.loss for record in runs.read_log()]
    if history:
        trace = torch.cuda.memory._snapshot()["device_traces"][0]
        out.with_suffix(HISTORY).write_bytes(packed(trace, marks.marks))
    result = {
        "case": case.name,
        "allocated_bytes": report.peak_allocated_bytes,
        "reserved_bytes": report.peak_reserved_bytes,
        "parts": report.memory_measured.parts,
        **loaded,
        "losses": losses,
        "data_wait_share": report.data_wait_share,
        "longest_row_tokens": report.longest_row.tokens,
        "seconds": round(time.perf_counter() - started, 1),
        "gpu": report.gpu,
        "gpu_total_bytes": total,
    }
    out.write_text(json.dumps(result), encoding="utf-8")


def write_weights(folder: str) -> None:
    """Fill a folder that has a config.json with random weights in bf16."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
    model.save_pretrained(folder)


def write_packed(folder: str) -> None:
    """Fill a folder that has a config.json with random weights in 4 bits: those that its plan would quantise."""
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    config = json.loads((Path(folder) / "config.json").read_text())
    del config["quantization_config"]
    with tempfile.TemporaryDirectory() as whole:
        (Path(whole) / "config.json").write_text(json.dumps(config))
        write_weights(whole)
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=["lm_head"],
        )
        model = AutoModelForImageTextToText.from_pretrained(
            whole, quantization_config=quantization, dtype=torch.bfloat16, device_map="cuda"
        )
    (Path(folder) / "model.safetensors").unlink()
    model.save_pretrained(folder)


def main() -> int:
    """Measure cases and write after each what is known; return 0 when all are measured."""
    asked = _arguments()
    known = (*CASES, *GRAPHS)
    cases = [case for case in known if re.search(asked.names, case.name)] if asked.names else CASES
    results = []
    places: SimpleQueue[str] = SimpleQueue()
    for number in range(asked.at_a_time * torch.cuda.device_count()):
        places.put(str(number % torch.cuda.device_count()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def measured(case: Case) -> str:
            options = ["--history"] if asked.history and re.search(asked.history, case.name) else []
            gpu = places.get()
            try:
                return in_its_own_process(case, asked.catalogue, folder / f"{case.name}.json", options, gpu)
            finally:
                places.put(gpu)

        with ThreadPoolExecutor(places.qsize()) as pool:
            running = {pool.submit(measured, case): case for case in cases}
            for done in as_completed(running):
                case = running[done].name
                print(case, done.result() or "ok", flush=True)
                # After each case: what is measured is kept if the rest takes too long.
                if (shown := folder / f"{case}.json").exists():
                    results.append(json.loads(shown.read_text()))
                    _write(asked.out, sorted(results, key=lambda run: run["case"]))
                if (history := folder / f"{case}{HISTORY}").exists():
                    archive(asked.out.parent, case, history.read_bytes())
    print(f"{len(results)} of {len(cases)} cases measured")
    return int(len(results) < len(cases))


def _write(out: Path, runs: list[dict]) -> None:
    text = json.dumps({"versions": library_versions(), "runs": runs}, indent=1)
    out.write_text(text + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path, help="file of the results; histories come to lie beside it")
    parser.add_argument("catalogue", type=Path)
    parser.add_argument("names", nargs="?", default="", help="regular expression of the cases to measure")
    parser.add_argument("--history", metavar="NAMES", help="regular expression of those whose allocations are kept")
    parser.add_argument("--at-a-time", type=int, default=AT_A_TIME, help="processes on each GPU")
    return parser.parse_args()


def in_its_own_process(case: Case, catalogue: Path, out: Path, options: list[str], gpu: str | None = None) -> str:
    """Measure one case into `out`, on this GPU or the first; return the end of what went wrong, if anything."""
    settings = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"} if case.expandable else {}
    settings |= {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
    done = subprocess.run(
        [sys.executable, __file__, "--one", case.name, str(catalogue), str(out), *options],
        env={**{k: v for k, v in os.environ.items() if k != "PYTORCH_ALLOC_CONF"}, **settings},
        capture_output=True,
        text=True,
    )
    return done.stderr[-1500:] if done.returncode else ""


if __name__ == "__main__":
    if sys.argv[1] == "--weights":
        write_weights(sys.argv[2])
    elif sys.argv[1] == "--packed":
        write_packed(sys.argv[2])
    elif sys.argv[1] == "--one":
        name, catalogue, out, *options = sys.argv[2:]
        cap = next((int(option) for option in options if option.isdigit()), None)
        chosen = next(case for case in (*CASES, *GRAPHS, *SMALL) if case.name == name)
        run(chosen, Path(catalogue), Path(out), cap, history="--history" in options)
    else:
        sys.exit(main())
