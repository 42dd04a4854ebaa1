"""The tables of README and docs/ that show what was measured on GPUs; docs/renew.py puts them in."""

import json
from pathlib import Path
from typing import NamedTuple

from gpu import bench, brute

from vlmtune.hardware.cards import cards
from vlmtune.units import GIB

MEASURED = Path(__file__).parent / "measured"
BY_OTHER_COMMANDS = (
    "| A run that was killed and goes on with `--resume` | the weights of an uninterrupted run, bit for bit "
    "| `make test` (`tests/e2e/test_resume.py`) | CPU, tiny models |",
    "| Exact answers of the demo on 360 held-out digits | 357 (99.2 %); 22 (6.1 %) before training "
    "| `make demo` | CPU, torch 2.15, transformers 5.23 |",
    "| CPU time of `--help`, `presets list`, `models list`, `validate` | 0.14, 0.22, 0.23, 0.28 s "
    "| `make bench` | CPU |",
    "| Time of an estimate, LLaVA 1.5 7B, imports included | 12 s; with `--fast` 8 s | `make bench` | CPU, two cores |",
)
"""Rows of the README's table whose numbers are in no file: what the command of the third column shows."""
CLOCKED = "median step of 16 rows, each run in a process of its own, by who calls"
"""Runs timed as timed.py times them now, their seconds by the rule of now, from what `calibrate` said once."""


def errors_table() -> str:
    """Return how far estimates are off, without the single runs: the first table that compare.py wrote."""
    return "\n".join(_tables_of_errors()[0]) + "\n"


def time_table() -> str:
    """Return how far predicted time is off, without the single runs: the first two tables of compare_time.py."""
    text = (MEASURED / "time-errors.md").read_text(encoding="utf-8")
    return "\n\n".join([part.strip() for part in text.split("\n\n") if part.startswith("|")][:2]) + "\n"


def ranks_table() -> str:
    """Return how fast runs of one GPU and of several were, and how much of several they made of one."""
    lines = ["| Machine | GPUs | Layers | Rows a second | Of one GPU |", "|---|--:|---|--:|--:|"]
    alone = {run["machine"]: run["rows_per_s"] for run in _runs("ranks.json") if run["num_gpus"] == 1}
    for run in _runs("ranks.json"):
        layers = "whole" if run["name"] == "whole" else "shared"
        times = f"{run['rows_per_s'] / alone[run['machine']]:.2f}×"
        lines.append(f"| {run['machine']} | {run['num_gpus']} | {layers} | {run['rows_per_s']:.2f} | {times} |")
    return "\n".join(lines) + "\n"


def ranks_memory_table() -> str:
    """Return estimates beside what the fullest of several GPUs took."""
    estimated = {run["case"]: run for run in _runs("ranks-estimated.json")}
    runs = [run for run in _runs("ranks-memory.json") if "gpus" in run]
    plans = [(run["case"][2:], estimated[run["case"]], run["gpus"]) for run in runs]
    for run in _runs("ranks.json"):
        if run["machine"] == "second" and run["gpus"]:  # those of the first were seen when a rule was changed
            kept = {kind: run["memory_estimated"][f"peak_{kind}"] for kind in ("reserved_bytes", "allocated_bytes")}
            plans.append((f"`vlmtune train`, Qwen3-VL-4B, {run['name']}", kept, run["gpus"]))
    lines = [
        "| Plan | GPUs | Reserved, estimated, GiB | Measured | Off | Allocated, off |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, one, gpus in plans:
        most = {kind: max(gpu[f"peak_{kind}"] for gpu in gpus) for kind in ("reserved_bytes", "allocated_bytes")}
        off = [f"{100 * (one[kind] / most[kind] - 1):+.2f} %" for kind in most]
        cells = [name, str(len(gpus)), *(f"{taken['reserved_bytes'] / GIB:.3f}" for taken in (one, most)), *off]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def measured_table() -> str:
    """Return the README's table: what was measured, and the command that shows it."""
    _, number, median, at_95, lowest, highest = _cells(_tables_of_errors()[0][2])[:6]
    errors = [float(_cells(line)[2]) for line in _tables_of_errors()[1][2:]]
    within = sum(abs(error) <= 1 for error in errors)
    by_train = [_train_difference(run) for run in _runs("train.json")]
    capped = [run for run in _runs("cap.json") if run["percent"] < 100]
    above_need = [run for run in _runs("cap.json") if run["of"] == "need"]
    lines = [
        "| What | Result | Shown by | Measured on |",
        "|---|---|---|---|",
        f"| Reserved memory, estimated against measured, {number} training runs | off by {median} % in the median, "
        f"{at_95} % at the 95th percentile, {lowest} to {highest} % at worst; {within} of {number} runs within 1 % "
        f"| `make gpu-errors` (no GPU), `make gpu` (yours) | {_setup('peaks.json')} |",
        f"| The same for `vlmtune train` itself, {len(by_train)} runs | off by {min(by_train):+.1f} to "
        f"{max(by_train):+.1f} % | `make gpu-train` | {_setup('train.json')} |",
        f"| Plans under a memory limit | {_ran(capped)} of {len(capped)} ran that were estimated at 92 and 98 % of it; "
        f"{_ran(above_need)} of {len(above_need)} that need 105 % "
        f"| `make gpu-cap` | {_setup('cap.json')} |",
        *_time_lines(),
        _beside_line(),
        _fast_line(),
        *BY_OTHER_COMMANDS,
    ]
    return "\n".join(lines) + "\n"


def _time_lines() -> tuple[str, str]:
    """Return how far off predicted kernel time was, and seconds of a step by the rule and the tool of now."""
    cells = {name: rest for name, *rest in map(_cells, time_table().splitlines())}
    number, median, lowest, highest, *_ = cells["blind"]
    more, _, worst, best, *_ = cells["blind at first, as predicted then"]
    by_clock, off, least, most, within = cells[CLOCKED]
    versions = "torch 2.11, transformers 5.17"
    return (
        f"| Kernel time of a step, predicted before it was timed, {number} runs | off by {median} % in the median, "
        f"{lowest} to {highest} % at worst; {more} more, off by {worst} to {best} %, led to rules "
        f"| `make gpu-time-errors` (no GPU), `make gpu-time` (yours) | H100 and H200, {versions} |",
        f"| Seconds of a step on a calibrated card, predicted before they were timed, {by_clock} runs "
        f"| off by {off} % in the median, {least} to {most} % at worst; {within} of {by_clock} within 25 % "
        f"| `tests/gpu/timed.py --calibrate` (yours), [how](docs/estimate.md#time) | H200, {versions} |",
    )


def _beside_line() -> str:
    """Return how fast rows are beside the best peer, where unsloth was measured: TRL alone is none."""
    found = [
        ratios for ratios in _ratios().values() if ratios and any(run["tool"] == "unsloth" for run in ratios.peers)
    ]
    least, most = (
        [f"{pick(getattr(one, key) for one in found):.2f}" for key in ("kernels", "rows")] for pick in (min, max)
    )
    cards = sorted({one.ours["gpu"].removeprefix("NVIDIA ") for one in found})
    return (
        f"| Speed beside the quicker one of TRL and unsloth, {len(found)} sets of rows and models, 7 GiB "
        f"| kernel time of a row {least[0]} to {most[0]} of its; {least[1]} to {most[1]} times as many rows a second "
        f"| `make gpu-bench` (yours) | {', '.join(cards)}, torch 2.11, transformers 5.17 |"
    )


def _fast_line() -> str:
    """Return how fast rows are at vlmtune's quickest beside unsloth, each pair of one call."""
    times = sorted(
        _times_unsloths(run) for run in _runs("fast.json") if run["tool"] == "vlmtune-fast" and run["call"] == 1
    )
    return (
        f"| The same at its quickest beside unsloth, {len(times)} sets of one call "
        f"| {times[0]:.2f} to {times[-1]:.2f} times as many rows a second "
        "| `make gpu-bench` (yours), [how](docs/speed.md) | H200, torch 2.11, transformers 5.17 |"
    )


def train_table() -> str:
    """Return every run of the command: what was set, and its reserved peak estimated and measured."""
    lines = ["| Run | Set | Steps | Estimated, GiB | Measured, GiB | Off |", "|---|---|--:|--:|--:|--:|"]
    for run in _runs("train.json"):
        words = ", ".join(f"`{word.removeprefix('training.')}`" for word in run["words"])
        sizes = (run[key]["peak_reserved_bytes"] / GIB for key in ("memory_estimated", "memory_measured"))
        cells = (run["name"], words, str(run["steps"]), *(f"{size:.2f}" for size in sizes))
        lines.append(f"| {' | '.join(cells)} | {_train_difference(run):+.1f} % |")
    return "\n".join(lines) + "\n"


def cap_table() -> str:
    """Return what became of the plans under a limit, and how much less they need than they reserve."""
    runs = _runs("cap.json")
    lines = ["| Of the limit | Runs | Ran | As the allocator's model said |", "|---|--:|--:|--:|"]
    for percent, of in dict.fromkeys((run["percent"], run["of"]) for run in runs):
        some = [run for run in runs if (run["percent"], run["of"]) == (percent, of)]
        what = "estimated at" if of == "estimate" else "the least that the plan needs is"
        foretold = sum(run["ran"] == run["predicted"] for run in some)
        lines.append(f"| {what} {percent} % | {len(some)} | {_ran(some)} | {foretold} |")
    least = [100 * (1 - run["taken_bytes"] / run["estimated_bytes"]) for run in runs if run["of"] == "need"]
    note = f"The least that these plans need is {min(least):.1f} to {max(least):.1f} % under what they reserve."
    return "\n".join([*lines, "", note]) + "\n"


def _tables_of_errors() -> list[list[str]]:
    """Return the lines of the tables that compare.py wrote: by kind of run, and every run."""
    text = (MEASURED / "errors.md").read_text(encoding="utf-8")
    return [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| \n").split("|")]


def _runs(file: str) -> list[dict]:
    return json.loads((MEASURED / file).read_text(encoding="utf-8"))["runs"]


def _ran(runs: list[dict]) -> int:
    return sum(run["ran"] for run in runs)


def _train_difference(run: dict) -> float:
    """Return by how much the estimate of a run is off, in percent of what was measured."""
    estimated, measured = (run[key]["peak_reserved_bytes"] for key in ("memory_estimated", "memory_measured"))
    return 100 * (estimated / measured - 1)


def _setup(file: str) -> str:
    measured = json.loads((MEASURED / file).read_text(encoding="utf-8"))
    cards = dict.fromkeys(run.get("gpu", "NVIDIA H100").split()[1] for run in measured["runs"])
    versions = (f"{name} {measured['versions'][name].rpartition('.')[0]}" for name in ("torch", "transformers"))
    return f"{' and '.join(cards)}, {', '.join(versions)}"


BESIDE = {
    ("qwen25-3b", "docs"): "Qwen2.5-VL-3B, docs",
    ("qwen25-3b", "short"): "Qwen2.5-VL-3B, short",
    ("qwen25-7b", "docs"): "Qwen2.5-VL-7B, docs",
    ("qwen3-4b", "docs"): "Qwen3-VL-4B, docs",
    ("qwen3-4b", "short"): "Qwen3-VL-4B, short",
    ("llava-7b", "docs"): "LLaVA 1.5 7B, docs",
    ("llava-7b", "short"): "LLaVA 1.5 7B, short",
}
"""Models and rows that are trained side by side (tests/gpu/bench.py), and their names."""
OURS, WITH_LEVERS, PEERS = "vlmtune", ("vlmtune-small", "vlmtune-fast"), ("trl", "unsloth")


def beside_table() -> str:
    """Return what a row took vlmtune and its peers, each run of one model and set on one kind of card."""
    lines = [
        "| Model, rows | Tool | At once | Kernels, ms a row | Predicted | Launches a row | Rows a second "
        "| Reserved, GiB | HFU | Card |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    found, elsewhere = _beside(), _beside("fast.json")
    for pair, name in BESIDE.items():
        for tool in (OURS, *WITH_LEVERS, *PEERS):
            if (*pair, tool) in elsewhere and (*pair, tool) not in found:
                continue
            run = found.get((*pair, tool))
            if run or bench.offers_of(tool, *pair, {}):
                lines.append(f"| {name} | {tool} | {_figures_of(run) if run else 'not measured' + ' |' * 7} |")
    return "\n".join(lines) + "\n"


def _beside(file: str = "bench.json") -> dict[tuple[str, str, str], dict]:
    return {(run["model"], run["rows"], run["tool"]): run for run in _runs(file) if "offer" in run}


def _figures_of(run: dict) -> str:
    """Return the cells of a run."""
    offer, low, high = run["offer"], *run["rows_per_s_quartiles"]
    tokens = offer.get("training.pack_tokens")
    at_once = f"packs of {tokens:,} tokens" if tokens else f"{offer['batch']} rows"
    if streamed := offer.get(bench.STREAMED):
        at_once += f", {streamed} layers away"
    if offer.get(bench.GRAPHS):
        at_once += ", CUDA graphs"
    if offer.get("data.cache_features"):
        once = f" (once: {run['encoding_ms_per_row']:.1f} ms a row)" if "encoding_ms_per_row" in run else ""
        at_once += f", features kept{once}"
    peaks = [card.bf16_tflops for card in cards() if card.name == run["gpu"]]
    per_s = run["flops_per_row"] / run["kernel_ms_per_row"] / 1e9 if "flops_per_row" in run else None
    cells = (
        at_once,
        f"{run['kernel_ms_per_row']:.1f}",
        f"{run['predicted_ms_per_row']:.1f}" if "predicted_ms_per_row" in run else "",
        f"{run['launches_per_row']:,.0f}",
        f"{run['rows_per_s']:.2f} ({low:.2f} to {high:.2f})",
        f"{run['reserved_bytes'] / GIB:.2f}" + ("" if run["cap_bytes"] else ", no limit"),
        f"{100 * per_s / peaks[0]:.0f} %" if per_s and peaks else "",
        run["gpu"].removeprefix("NVIDIA "),
    )
    return " | ".join(cells)


class Ratios(NamedTuple):
    """vlmtune's figures as multiples of the best peer's, which need not be the same peer in every one."""

    ours: dict
    peers: list[dict]
    kernels: float
    launches: float
    rows: float
    reserved: float


def _ratios(tool: str = OURS) -> dict[str, Ratios | None]:
    """Return them by model and set; None where no peer was measured on the same card."""
    found, all_ratios = _beside(), {}
    for pair, name in BESIDE.items():
        ours = found.get((*pair, tool))
        peers = [run for tool in PEERS if (run := found.get((*pair, tool))) and ours and run["gpu"] == ours["gpu"]]
        all_ratios[name] = None
        if peers:
            least = ("kernel_ms_per_row", "launches_per_row", "reserved_bytes")
            kernels, launches, reserved = (ours[key] / min(peer[key] for peer in peers) for key in least)
            rows = ours["rows_per_s"] / max(peer["rows_per_s"] for peer in peers)
            all_ratios[name] = Ratios(ours, peers, kernels, launches, rows, reserved)
    return all_ratios


def ratios_table() -> str:
    """Return vlmtune's figures beside the best peer's."""
    lines = [
        "| Model, rows | Tool | Kernel time | Launches | Rows a second | Reserved | Compared, with first losses |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    ratios = [_ratios(tool) for tool in (OURS, *WITH_LEVERS)]
    for name in BESIDE.values():
        for one in filter(None, (of_tool[name] for of_tool in ratios)):
            losses = ", ".join(f"{run['tool']} {run['losses'][0]:.2f}" for run in (one.ours, *one.peers))
            figures = " | ".join(f"{figure:.2f}" for figure in one[2:])
            lines.append(f"| {name} | {one.ours['tool']} | {figures} | {losses} |")
    return "\n".join(lines) + "\n"


def _times_unsloths(run: dict) -> float | None:
    """Return a run's rows a second as a multiple of unsloth's in the same call; None where it has none there."""
    keys = ("call", "model", "rows")
    peers = [
        one for one in _runs("fast.json") if one["tool"] == "unsloth" and all(one[key] == run[key] for key in keys)
    ]
    return run["rows_per_s"] / peers[0]["rows_per_s"] if peers else None


def fast_table() -> str:
    """Return vlmtune at its quickest beside unsloth; runs of one call were made on one machine, side by side."""
    lines = [
        "| Call | Model, rows | Tool | At once | Kernels, ms a row | Rows a second | Times unsloth's | Reserved, GiB "
        "| Driver, GiB | Card |",
        "|--:|---|---|---|--:|--:|--:|--:|--:|---|",
    ]
    for run in _runs("fast.json"):
        at_once, kernels, _, _, per_s, reserved, _, card = _figures_of(run).split(" | ")
        times = f"{ratio:.2f}" if (ratio := _times_unsloths(run)) else "–"
        driver, name = f"{run['driver_bytes'] / GIB:.2f}", BESIDE[run["model"], run["rows"]]
        cells = (run["call"], name, run["tool"], at_once, kernels, per_s, times, reserved, driver, card)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


FUSED = {
    "varlen": "the library's code",
    "norms": "with `hardware.fused_norms`",
    "fused": "and `hardware.fused_elementwise`",
    "joined": "and `hardware.joined_constants`",
}
"""Variants of tests/gpu/lean.py."""
PACKED_MODELS = {
    "qwen3-4b-packs": "Qwen3-VL-4B",
    "llava-7b-packs": "LLaVA 1.5 7B",
    "qwen25-3b-packs": "Qwen2.5-VL-3B",
    "qwen25-7b-packs": "Qwen2.5-VL-7B",
}
"""Its sets of rows in packs."""


def fused_table(runs: str = "fused-packs.json") -> str:
    """Return what norms and elementwise work in one kernel save, by model, or what is in another file of such runs."""
    lines = [
        "| Model | | Kernels, ms a row | Launches a row | Allocated, estimated, GiB | Measured | Last loss |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for run in _runs(runs):
        sizes = (f"{run[f'{word}allocated_bytes'] / GIB:.3f}" for word in ("estimated_", ""))
        kernels = (f"{run['kernel_ms_per_row']:.1f}", f"{run['launches_per_row']:,.0f}")
        model = PACKED_MODELS[run["case"]]
        cells = (model, FUSED[run["variant"]], *kernels, *sizes, f"{run['losses'][-1]:.4f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def features_table() -> str:
    """Return what the second epoch takes with the vision tower and with cached features."""
    lines = [
        "| Vision features | Kernels, s | Launches | Epoch, s | Encoding and loading, s | Reserved, GiB | Last loss |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for run in _runs("features.json"):
        encoding = f"{run['encoding_s_with_loading']:.1f}" if run["cached"] else "–"
        cells = (
            "cached" if run["cached"] else "computed each time",
            f"{run['kernel_seconds_of_last_epoch']:.3f}",
            f"{run['launches_of_last_epoch']:,}",
            f"{run['seconds_of_epochs'][-1]:.1f}",
            encoding,
            f"{run['reserved_bytes'] / GIB:.2f}",
            f"{run['losses'][-1]:.4f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def brute_table() -> str:
    """Return how what `plan` chooses did beside what it might have chosen."""
    lines = ["| Model, rows | Timed | Chosen | Slower than the quickest | By kernels alone |", "|---|--:|---|--:|--:|"]
    for found in brute.verdicts(json.loads(brute.PLANS.read_text(encoding="utf-8")), _runs("brute.json")):
        chosen = found["chosen"].removeprefix(f"{found['pair']}--").replace("--", ", ")
        over = (f"{100 * found[key]:.1f} %" for key in ("over", "over_by_kernels"))
        lines.append(f"| {' | '.join((found['pair'], str(found['timed']), chosen, *over))} |")
    return "\n".join(lines) + "\n"


def peers_on_gpus_table() -> str:
    """Return rows a second on one, two and four GPUs, and TRL's."""
    lines = [
        "| Machine | Tool | GPUs | Rows a second | Of one GPU | Reserved, GiB | Losses |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    for machine in json.loads((MEASURED / "ranks-peers.json").read_text(encoding="utf-8"))["machines"]:
        name = machine["gpus"].replace(" NVIDIA", "") + ("" if machine["p2p"] else ", no P2P")
        alone = next((run["rows_per_s"] for run in machine["runs"] if run["num_gpus"] == 1), None)
        for run in sorted(machine["runs"], key=lambda run: (run["tool"] == "trl", run["num_gpus"])):
            of_one = f"{run['rows_per_s'] / alone:.2f}×" if alone and run["tool"] == "vlmtune" else ""
            losses = ", ".join(f"{loss:.4f}" for loss in run["losses"])
            figures = f"{run['rows_per_s']:.2f} | {of_one} | {run['reserved_bytes'] / GIB:.2f}"
            lines.append(f"| {name} | {run['tool']} | {run['num_gpus']} | {figures} | {losses} |")
    return "\n".join(lines) + "\n"
