"""Times training with PEFT's forward, with lean adapters and with what else saves kernels: `make gpu-lean`.

Real trainer, real sizes, random weights, a process for each run. Of each: seconds a row (median of the steps), what the
profiler sees of one step (kernel time and launches a row, by kernel), where the host waits for the card in another,
the losses, and the peaks beside their estimate. Rows are those of a page (1120×840 px, 100 to 400 characters), one by
one or in packs, and short ones (448×336 px, 30 to 120 characters). First one product alone: how far from exact it is,
and how long it takes.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # torch reads it when it is imported
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu.cases import LLAVA_7B, QWEN3_4B, QWEN25_3B, QWEN25_7B, Case, prepare  # noqa: E402
from gpu.compare import CATALOGUE, prepared, replay_of  # noqa: E402
from gpu.measure import made_on_the_card  # noqa: E402
from gpu.profiled import Clock, each_in_its_own, milliseconds, most_of  # noqa: E402

from vlmtune.runs.versions import library_versions  # noqa: E402
from vlmtune.units import GIB  # noqa: E402

CARD = "cuda"
STEPS, ROWS = 20, 8
PROFILED, WATCHED = 6, 8
"""Steps of which kernels, and waits, are counted; they are not timed."""
WARM_UP = 2
SETTINGS = {"training.max_steps": STEPS, "hardware.offload_embeddings": None}
ONE_BY_ONE = {**SETTINGS, "training.gradient_accumulation_steps": 4}
IN_PACKS = {**ONE_BY_ONE, "training.gradient_accumulation_steps": ROWS, "training.packing": True}
FOUR = {**SETTINGS, "training.batch_size": 4, "training.gradient_accumulation_steps": 1}
PAGE_PX, PAGE_CHARS, SHORT_CHARS = (1120, 840), 400, 120
PACKED = (
    ("qwen3-4b", QWEN3_4B, 12_288),
    ("qwen25-3b", QWEN25_3B, 12_288),
    ("llava-7b", LLAVA_7B, 5120),
    ("qwen25-7b", QWEN25_7B, 3280),
)
"""Pages in the packs that `bench.py` takes."""
SETS = (
    Case("3b-short", QWEN25_3B, SHORT_CHARS, rows=ROWS, settings=FOUR),
    Case("3b-docs", QWEN25_3B, PAGE_CHARS, PAGE_PX, rows=ROWS, settings=ONE_BY_ONE),
    Case("7b-docs", QWEN25_7B, PAGE_CHARS, PAGE_PX, rows=ROWS, settings=ONE_BY_ONE),
    *(
        Case(
            f"{name}-packs", model, PAGE_CHARS, PAGE_PX, rows=ROWS, settings={**IN_PACKS, "training.pack_tokens": size}
        )
        for name, model, size in PACKED
    ),
)
LATER = ("align_widths", "varlen_attention", "fused_norms", "fused_elementwise", "joined_constants")
PEFT = {"lean_lora": False, **dict.fromkeys(LATER, False)}
LEAN = {**PEFT, "lean_lora": True}
ALIGNED = {**LEAN, "align_widths": True}
VARLEN = {**ALIGNED, "varlen_attention": True}
NORMS = {**VARLEN, "fused_norms": True}
FUSED = {**NORMS, "fused_elementwise": True}
JOINED = {**FUSED, "joined_constants": True}
VARIANTS = {
    "peft": PEFT,
    "lean": LEAN,
    "aligned": ALIGNED,
    "varlen": VARLEN,
    "norms": NORMS,
    "fused": FUSED,
    "joined": JOINED,
}
"""What each run has in its section `hardware`: each the one before and something more."""


def trained(prepared_run: tuple, variant: str, limit_bytes: float) -> dict:
    """Train, held to a limit once the model is there, and return what it took; nothing else in this process."""
    from rich.console import Console

    from vlmtune.data.run_data import MeasuredRows, RunData
    from vlmtune.engine import train as engine
    from vlmtune.engine.monitor import LiveView
    from vlmtune.engine.runtime import probe_device, quiet_libraries
    from vlmtune.models import build
    from vlmtune.plan.decide import make_plan
    from vlmtune.plan.file import save_plan
    from vlmtune.runs.folder import RunFolder

    quiet_libraries()
    _, total_bytes = torch.cuda.mem_get_info()

    def build_model(plan, **how):
        model = build.build_model(plan, **how)
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(min(1, limit_bytes / total_bytes))
        return model

    clock, services = Clock((PROFILED,), WATCHED, WARM_UP), engine._services
    engine._services = lambda plan, run_folder: [*services(plan, run_folder), clock]
    engine.build_model = build_model
    build.load_base, engine.check_checkpoint = lambda plan, **how: made_on_the_card(plan), lambda plan: {}
    config, source, samples = prepared_run
    hardware = config.hardware.model_copy(update=VARIANTS[variant])
    config = config.model_copy(update={"experiment_name": variant, "hardware": hardware})
    plan = make_plan(config, source, probe_device())
    runs = RunFolder.create(config.run_dir)
    save_plan(plan, runs.plan)
    with LiveView("lean", Console(file=open(os.devnull, "w"))) as view:  # noqa: SIM115
        report = engine.train(plan, source, RunData(MeasuredRows(samples), MeasuredRows([])), runs, view)
    return {
        "variant": variant,
        **{key: getattr(plan, key) for key in VARIANTS[variant]},
        **clock.figures(plan.rows_per_step),
        "most_of_a_step": most_of(clock.spans),
        "waits_of_a_step": dict(clock.waits.most_common()),
        "reserved_bytes": report.peak_reserved_bytes,
        "allocated_bytes": report.peak_allocated_bytes,
        "longest_row_tokens": report.longest_row.tokens,
        "losses": [record.loss for record in runs.read_log()],
    }


def estimated(case: Case, variant: str, folder: Path) -> dict:
    """Return what the run is estimated to take."""
    hardware = {f"hardware.{key}": value for key, value in VARIANTS[variant].items()}
    case = replace(case, settings={**case.settings, **hardware})
    shown = replay_of(case, prepared(case, folder).log())
    return {
        "estimated_reserved_bytes": shown.peak_reserved_bytes,
        "estimated_allocated_bytes": shown.peak_allocated_bytes,
    }


def products(rows: int = 1450, features: tuple[int, int] = (2048, 11008), rank: int = 16) -> dict:
    """Compare one product and its gradients with the exact ones, and time it, by PEFT's forward and the lean one."""
    from bitsandbytes.functional import dequantize_4bit

    torch.manual_seed(0)
    model = adapted(*features, rank)
    module = model.get_submodule("base_model.model.0")
    x = torch.randn(1, rows, features[0], device=CARD, dtype=torch.bfloat16)
    g = torch.randn(1, rows, features[1], device=CARD, dtype=torch.bfloat16) / features[1] ** 0.5
    weight = dequantize_4bit(module.base_layer.weight, module.base_layer.weight.quant_state).double()
    a, b = (part["default"].weight.detach().double() for part in (module.lora_A, module.lora_B))
    x64, g64, scale = x[0].double(), g[0].double(), module.scaling["default"]
    h = x64 @ a.T
    exact = (
        x64 @ weight.T + scale * h @ b.T,
        g64 @ weight + scale * (g64 @ b) @ a,
        scale * (g64 @ b).T @ x64,
        scale * g64.T @ h,
    )
    found = {}
    for name in ("peft", "lean"):
        if name == "lean":
            from vlmtune.models.lora.lean import make_lean

            make_lean(model)
        results = passed(module, x, g)
        names = ("output", "of_x", "of_a", "of_b")
        errors = [float((one.double() - true).norm() / true.norm()) for one, true in zip(results, exact, strict=True)]
        found[name] = dict(zip(names, errors, strict=True)) | {"ms": milliseconds(lambda: passed(module, x, g))}
    return found


def adapted(inside: int, outside: int, rank: int) -> nn.Module:
    """Return a linear layer in 4 bits with an adapter."""
    import bitsandbytes
    from peft import LoraConfig, get_peft_model

    linear = bitsandbytes.nn.Linear4bit(
        inside, outside, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4", device="cpu"
    )
    linear.weight = bitsandbytes.nn.Params4bit(
        (torch.randn(outside, inside) * 0.02).bfloat16(), requires_grad=False, quant_type="nf4"
    )
    base = nn.Sequential(linear).to(CARD)
    base.is_loaded_in_4bit = True
    model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["0"])).to(CARD)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    return model


def passed(module: nn.Module, x: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    """Return the output and the gradients of x, A and B."""
    module.zero_grad(set_to_none=True)
    x = x.detach().requires_grad_()
    y = module(x)
    y.backward(g)
    return y[0].detach(), x.grad[0], module.lora_A["default"].weight.grad, module.lora_B["default"].weight.grad


def main() -> None:
    """Measure the sets and write after each run what is known."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="?", default="", help="regular expression of the sets to measure")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="of each set")
    parser.add_argument("--no-estimates", action="store_true", help="they take half a minute each, on the processor")
    parser.add_argument("--limit-gib", type=float, default=7.0, help="what a run may reserve")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each run")
    asked = parser.parse_args()
    [product] = each_in_its_own(products, [()])
    found = {"gpu": torch.cuda.get_device_name(), "versions": library_versions(), "product": product, "runs": []}

    def write() -> None:
        asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    write()
    print(json.dumps(found["product"]), flush=True)
    last = {"training.max_steps": asked.steps}
    cases = [replace(case, settings=case.settings | last) for case in SETS if re.search(asked.names, case.name)]
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            run = prepare(case, CATALOGUE, Path(folder) / case.name)  # the same pictures for all
            tasks = [(run, variant, asked.limit_gib * GIB) for variant in asked.variants]
            for took in each_in_its_own(trained, tasks):
                found["runs"].append({"case": case.name, **took})
                write()
                print(*(found["runs"][-1][key] for key in SHOWN), flush=True)
        for number, run in enumerate(found["runs"] if not asked.no_estimates else ()):
            case = cases[number // len(asked.variants)]
            run |= estimated(case, run["variant"], Path(folder) / f"estimate-{number}")
            write()


SHOWN = ("case", "variant", "step_s", "kernel_ms_per_row", "launches_per_row", "reserved_bytes", "allocated_bytes")

if __name__ == "__main__":
    main()
