"""What kinds of kernels a profiled step took: tables of docs/profile.md, made of tests/gpu/measured. No torch here."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

MEASURED = Path(__file__).parent / "measured"
GROUPS = {
    "attention": r"fmha|flash|sdpa|cudnn::fusion",
    "products of matrices": r"nvjet|gemm|cutlass|gemv|splitK",
    "4-bit weights made whole": r"[Dd]equant",
    "norms": r"layer_norm|rms_norm|LayerNorm|^_norm",
    "optimizer, clipping, lists of tensors": r"kOptimizer|multi_tensor",
    "copies and changes of format": r"copy_kernel|direct_co|CatArray",
    "sums and means": r"reduce_kernel",
    "elementwise": r"elementwise_kernel|^triton_|^_gated|^_turned",
}
"""By group, what is in the names of its kernels, which are cut at 100 characters; the first that fits counts."""
OTHERS = "all others, and small ones that were not named"


@dataclass(frozen=True)
class Profile:
    """One profiled step, of one way to train."""

    title: str
    file: str
    is_it: Callable[[dict], bool]
    """Of the runs in the file."""
    rows: int
    """Of the step."""


def of_group(name: str) -> str:
    """Return the group of a kernel."""
    return next((group for group, pattern in GROUPS.items() if re.search(pattern, name)), OTHERS)


def by_group(kernels: Iterable[tuple[str, float, int]], all_ms: float, all_launches: float) -> dict[str, list]:
    """Return milliseconds and launches of each group.

    Args:
        kernels: those that were named: name, milliseconds, launches.
        all_ms: of the step, like `all_launches`; what is in no group belongs to the others.
    """
    found = {group: [0, 0] for group in GROUPS} | {OTHERS: [all_ms, all_launches]}
    for name, took_ms, times in kernels:
        for group, sign in ((of_group(name), 1), (OTHERS, -1)):
            found[group][0] += sign * took_ms
            found[group][1] += sign * times
    return found


def profile_of(profile: Profile) -> dict[str, tuple]:
    """Return milliseconds and launches a row of each group, and of all."""
    known = json.loads((MEASURED / profile.file).read_text(encoding="utf-8"))
    run = next(run for run in known["runs"] if profile.is_it(run))
    # lean.json is of an older script.
    ms = next(run[key] for key in ("kernel_ms_per_row", "kernel_ms_a_row") if key in run)
    launches = next(run[key] for key in ("launches_per_row", "launches_a_row") if key in run)
    found = by_group(run["most_of_a_step"], ms * profile.rows, launches * profile.rows)
    a_row = {group: (part / profile.rows, times / profile.rows) for group, (part, times) in found.items()}
    return {**a_row, "all": (ms, launches)}


def table_of(profiles: Iterable[Profile]) -> str:
    """Return the profiles beside each other: milliseconds a row, and launches."""
    profiles = list(profiles)
    found = [profile_of(profile) for profile in profiles]
    lines = [
        f"| Kernels: ms a row, launches a row | {' | '.join(profile.title for profile in profiles)} |",
        f"|---|{'--:|' * len(profiles)}",
    ]
    for group in (*GROUPS, OTHERS, "all"):
        cells = [f"{of[group][0]:.1f}, {of[group][1]:,.0f}" if of[group][1] else "–" for of in found]
        lines.append(f"| {group} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def of_bench(model: str, tool: str) -> Callable[[dict], bool]:
    """Return whether a run of bench.json or fast.json is this one, on pages."""
    return lambda run: (run["model"], run["rows"], run["tool"]) == (model, "docs", tool)


def of_lean(case: str, variant: str) -> Callable[[dict], bool]:
    """Return whether a run of lean.py is this one."""
    return lambda run: (run["case"], run["variant"]) == (case, variant)


PAGES_3B = (
    Profile(
        "PEFT's forward, as in 0.1.0, a row at a time (H100)",
        "lean.json",
        lambda run: run["case"] == "3b-docs" and not run["lean_lora"],
        rows=4,
    ),
    Profile("lean, widths filled up, varlen (H200)", "norms.json", lambda run: run["variant"] == "varlen", rows=4),
    Profile("norms in one kernel, too (H200)", "norms.json", lambda run: run["variant"] == "norms", rows=4),
    Profile(
        "packs of 12,288 tokens, all levers of speed (H200)", "bench.json", of_bench("qwen25-3b", "vlmtune"), rows=8
    ),
)
PAGES_IN_PACKS = tuple(
    Profile(f"{model}, {title}", "fused-packs.json", of_lean(case, variant), rows=8)
    for model, case in (("Qwen3-VL-4B", "qwen3-4b-packs"), ("LLaVA 1.5 7B", "llava-7b-packs"))
    for title, variant in (("the library's code", "varlen"), ("norms and elementwise work in one kernel", "fused"))
)
PAGES_BESIDE = tuple(
    Profile(f"{model}, {tool}", "bench.json" if tool == "vlmtune" else "fast.json", of_bench(key, tool), rows=8)
    for model, key in (("Qwen3-VL-4B", "qwen3-4b"), ("LLaVA 1.5 7B", "llava-7b"))
    for tool in ("vlmtune", "vlmtune-fast", "unsloth")
)
