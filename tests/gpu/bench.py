"""vlmtune beside its peers on the GPUs at hand: `make gpu-bench`; docs/speed.md says how the figures are to be read.

Random weights at real size, made once a model; each run in a process of its own, one at a time on each GPU, in the
order of their weight. What is there is written after each run; runs that an earlier call has made are kept unless they
are made again. `--costs` adds, without a GPU, what a row costs by vlmtune's own estimate.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import cycle, product
from pathlib import Path
from queue import Empty, SimpleQueue

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu.cases import LLAVA_7B, QWEN3_4B, QWEN25_3B, QWEN25_7B, Case, prepare  # noqa: E402
from gpu.features import write_rows  # noqa: E402
from gpu.peers import STEPS, Offer, Run, plan_of  # noqa: E402

from vlmtune.levers.speed.graphs import KEY as GRAPHS  # noqa: E402
from vlmtune.levers.streaming import KEY as STREAMED  # noqa: E402
from vlmtune.plan.types import Device  # noqa: E402

ROOT = Path(__file__).parents[2]
CATALOGUE = ROOT / "vlmtune" / "catalog"
MODELS = {"qwen25-3b": QWEN25_3B, "qwen25-7b": QWEN25_7B, "qwen3-4b": QWEN3_4B, "llava-7b": LLAVA_7B}
TOOLS = ("vlmtune", "vlmtune-small", "vlmtune-fast", "trl", "unsloth", "trl-liger")
EMBEDDINGS_AWAY = dict.fromkeys(("qwen25-7b", "llava-7b"), {"hardware.offload_embeddings": True})
"""Where the head has weights of its own."""
START_S = 60
"""No run begins with less left: it would only have been loaded."""


@dataclass(frozen=True)
class Rows:
    """A set of rows: a noisy picture each, and so many characters, half of them answer."""

    picture_px: tuple[int, int]
    chars: tuple[int, int]
    per_step: int


SETS = {"docs": Rows((1120, 840), (100, 400), 8), "short": Rows((448, 336), (40, 120), 16)}
PAIRS = {
    ("qwen25-3b", "docs"): ((12_288, 4608), (8, 4, 2, 1), (8192, 24)),
    ("qwen25-3b", "short"): ((8192, 4096), (16, 8, 4), (8192, 12)),
    ("qwen25-7b", "docs"): ((3280, 1640), (2, 1), (4920, 24)),
    ("qwen3-4b", "docs"): ((12_288, 8192, 4096), (8, 4, 2, 1), (8192, 32)),
    ("llava-7b", "docs"): ((7168, 5120, 4096, 2048), (8, 4, 2, 1), (5120, 16)),
    ("qwen3-4b", "short"): ((8192, 4096), (16, 8, 4), (8192, 22)),
    ("llava-7b", "short"): ((5120, 4096, 2048), (8, 4, 2, 1), (5120, 20)),
}
"""What is measured, the weightiest first: tokens of the packs that vlmtune is offered, by its own estimate of 7 GiB;
how many rows at a time peers are, from what may fit to what must; and for `vlmtune-small` the packs and how many layers
wait in main memory, so that by the estimate three quarters of the best peer's memory suffice."""

FAST = {
    ("qwen3-4b", "docs"): {"training.pack_tokens": 10_496, GRAPHS: True},
    ("qwen3-4b", "short"): {"training.pack_tokens": 4608, GRAPHS: True},
    ("llava-7b", "docs"): {"training.pack_tokens": 7936, STREAMED: 12, GRAPHS: True},
    ("llava-7b", "short"): {"training.pack_tokens": 11_520, STREAMED: 20},
}
"""`vlmtune-fast`: all rows of a step in one pack, for which layers wait in main memory where 7 GiB would not do by the
estimate; layers are CUDA graphs where the card would wait for their launches."""


@dataclass
class Results:
    """What is known so far, on the disk after each run."""

    out: Path
    runs: list[dict] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if self.out.exists():
            self.runs = json.loads(self.out.read_text(encoding="utf-8"))["runs"]

    def add(self, found: dict) -> None:
        """Keep a run in place of an earlier one of its kind."""
        with self.lock:
            self.runs = [run for run in self.runs if kind_of(run) != kind_of(found)] + [found]
            self.write()
            shown = ("model", "rows", "tool", "offer", "rows_per_s", "kernel_ms_per_row", "launches_per_row")
            print(*(found.get(key) for key in (*shown, "reserved_bytes", "failed", "error", "call_s")), flush=True)

    def write(self) -> None:
        """Write all runs."""
        text = json.dumps({"steps": STEPS, "runs": sorted(self.runs, key=kind_of)}, indent=1)
        self.out.write_text(text + "\n", encoding="utf-8")


def kind_of(run: dict) -> tuple[str, str, str]:
    """Return what tells runs apart."""
    return run["model"], run["rows"], run["tool"]


def prepared(folder: Path, models: list[str], sets: list[str], steps: int = STEPS) -> None:
    """Write the rows of the sets for so many steps, and each model's config and processor into a folder of its own."""
    for name in sets:
        rows = SETS[name]
        write_rows(folder / f"{name}.jsonl", steps * rows.per_step, rows.picture_px, rows.chars)
    for model in models:
        prepare(Case("bench", MODELS[model]), CATALOGUE, folder / model)


def offers_of(tool: str, model: str, rows: str, settings: Offer) -> tuple[Offer, ...]:
    """Return what a tool may choose from, the largest first."""
    packs, batches, (small_pack, streamed) = PAIRS[model, rows]
    packed = {"training.packing": True, "hardware.varlen_attention": True} | settings
    if tool == "vlmtune":
        return tuple({"training.pack_tokens": tokens} | packed for tokens in packs)
    levers = {"data.cache_features": True} | EMBEDDINGS_AWAY.get(model, {})
    if tool == "vlmtune-small":
        return ({"training.pack_tokens": small_pack, STREAMED: streamed} | packed | levers,)
    if tool == "vlmtune-fast":
        return (FAST[model, rows] | packed | levers,) if (model, rows) in FAST else ()
    return tuple({"batch": batch} for batch in batches)


def write_weights(folder: Path, gpu: str) -> None:
    """Give a model random weights."""
    words = [sys.executable, str(ROOT / "tests/gpu/measure.py"), "--weights", str(folder / "model")]
    if subprocess.run(words, env=environment(gpu, None)).returncode:
        print(f"{folder.name}: no weights; its runs will say that", flush=True)


def trained(asked: Run, gpu: str, libraries: Path | None, limit_s: float) -> dict:
    """Train in a process of its own on this GPU; return its figures, or the end of what it said."""
    own = Path(asked.folder) / f"{asked.tool}-{asked.rows}"
    own.mkdir()
    result, first = own / "result.json", "unsloth" if asked.tool == "unsloth" else "torch"  # it changes later imports
    words = json.dumps(asdict(asked)), str(result)
    code = f"import {first}; from gpu.side_by_side import main; main(*{words!r})"
    how = {"cwd": own, "env": environment(gpu, libraries), "timeout": limit_s}
    with (own / "said.txt").open("w") as said:
        try:
            done = subprocess.run([sys.executable, "-c", code], stdout=said, stderr=said, **how)
            error = f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            error = f"not done after {limit_s:.0f} s"
    if result.exists():
        return json.loads(result.read_text(encoding="utf-8"))
    return {"error": f"{error}: {(own / 'said.txt').read_text(errors='replace')[-2500:]}"}


def environment(gpu: str, libraries: Path | None) -> dict[str, str]:
    """Return the environment of a run: its GPU, and a folder with the libraries of a peer before all others."""
    paths = [str(path) for path in (libraries, ROOT, ROOT / "tests") if path]
    paths += [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    own = {"CUDA_VISIBLE_DEVICES": gpu, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    return os.environ | own | {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "TOKENIZERS_PARALLELISM": "false"}


def taken(queue: SimpleQueue) -> Iterator[Run]:
    """Yield what is left of a queue."""
    while True:
        try:
            yield queue.get_nowait()
        except Empty:
            return


def measure(asked: argparse.Namespace) -> None:
    """Make the models, side by side, then the runs."""
    began, results = time.monotonic(), Results(asked.out)
    peers = {tool: Path(folder).resolve() for tool, folder in pairs_of(asked.peers)}
    chosen = {tool: tuple(json.loads(offers)) for tool, offers in pairs_of(asked.offers)}
    settings = {key: json.loads(value) for key, value in pairs_of(asked.settings)}
    pairs = [pair for pair in PAIRS if pair[0] in asked.models and pair[1] in asked.sets]
    gpus = asked.gpus.split(",")
    queue: SimpleQueue[Run] = SimpleQueue()
    with tempfile.TemporaryDirectory(dir=asked.folder) as name, ThreadPoolExecutor(len(gpus)) as pool:
        models = list(dict.fromkeys(model for model, _ in pairs))
        folders = {model: Path(name).resolve() / model for model in models}
        prepared(Path(name), models, asked.sets)
        making = [pool.submit(write_weights, folders[model], gpu) for model, gpu in zip(models, cycle(gpus))]
        for one in making:
            one.result()
        print(f"{len(folders)} models made after {time.monotonic() - began:.0f} s", flush=True)
        for (model, rows), tool in product(pairs, asked.tools):
            if offers := chosen.get(tool) or offers_of(tool, model, rows, settings):
                queue.put(Run(tool, str(folders[model]), rows, SETS[rows].per_step, offers))

        def work(gpu: str) -> None:
            for run in taken(queue):
                started, left_s = time.monotonic(), asked.limit - (time.monotonic() - began)
                if left_s < START_S:
                    return
                found = trained(run, gpu, peers.get(run.tool), min(left_s, asked.run_limit))
                about = {"model": Path(run.folder).name, "rows": run.rows, "tool": run.tool}
                results.add(
                    {**about, "rows_per_step": run.rows_per_step, **found, "call_s": time.monotonic() - started}
                )

        for worker in [pool.submit(work, gpu) for gpu in gpus]:
            worker.result()
    print(f"done after {time.monotonic() - began:.0f} s", flush=True)


def add_costs(out: Path) -> None:
    """Add to vlmtune's runs what a row of the profiled step costs, and is predicted to take, by its own estimate."""
    results = Results(out)
    for run in results.runs:
        if run["tool"] == "vlmtune" and "offer" in run:
            steps, profiled = len(run["step_seconds"]), run.get("profiled_steps", 1)
            with tempfile.TemporaryDirectory() as name:
                prepared(Path(name), [run["model"]], [run["rows"]], steps)
                asked = Run("vlmtune", f"{name}/{run['model']}", run["rows"], run["rows_per_step"], ())
                run |= costs_of(asked, run["offer"], run["gpu"], range(steps - profiled, steps))
            results.write()
            print(*kind_of(run), f"{run['flops_per_row'] / 1e12:.1f} TFLOP", run["predicted_ms_per_row"], flush=True)


def costs_of(asked: Run, offer: Offer, card: str, steps: range) -> dict[str, float]:
    """Return operations, recomputed ones too, kernel time and launches of a row in the steps that were profiled."""
    from gpu.compare import H100_SMS, HOPPER

    from vlmtune.data.batches.packs import collate_of
    from vlmtune.data.collate import Collator
    from vlmtune.data.dataset import TuneDataset
    from vlmtune.data.run_data import MeasuredRows
    from vlmtune.data.samples import read_samples
    from vlmtune.estimate.simulate.cuda import hidden_of
    from vlmtune.estimate.simulate.simulation import Run as Simulated
    from vlmtune.estimate.simulate.simulation import simulate
    from vlmtune.estimate.simulate.steps import collated, steps_of_run
    from vlmtune.estimate.simulate.weights import loading_of
    from vlmtune.estimate.timing.predict import spent
    from vlmtune.estimate.timing.rates import Rates
    from vlmtune.hardware.cards import find_card
    from vlmtune.hub.source import open_model
    from vlmtune.models.build import family_of
    from vlmtune.models.processor import load_processor

    plan = plan_of(asked, offer, Device("cuda", "H100", True))
    samples, source = read_samples(asked.rows_path).samples, open_model(asked.model, None, Path(asked.folder))
    processor, family = load_processor(plan), family_of(plan)
    lengths = MeasuredRows(samples).lengths(processor, family, plan, source).total.tolist()
    rows, collate = TuneDataset(samples, processor, family, plan), collate_of(plan, Collator(processor))
    batches = collated(steps_of_run(plan, lengths)[steps.start : steps.stop], rows, collate)
    log = simulate(plan, Simulated(batches, hidden_of(HOPPER, H100_SMS), loading_of(plan)))
    launched = sum((batch.images + batch.tokens for batch in log.batches), start=sum(log.updates, start=Counter()))
    took = spent(launched, Rates(find_card(card)))
    return {
        "flops_per_row": log.flops / log.num_rows,
        "predicted_ms_per_row": round(took.kernels_s * 1e3 / log.num_rows, 2),
        "predicted_launches_per_row": round(took.launches / log.num_rows),
    }


def pairs_of(words: list[str]) -> list[list[str]]:
    """Return what stands before and behind the first `=` of each."""
    return [word.split("=", 1) for word in words]


def some_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Return what reads names with commas between them."""

    def read(text: str) -> list[str]:
        if unknown := [name for name in text.split(",") if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: only {', '.join(known)} are known")
        return text.split(",")

    return read


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="file of the results")
    parser.add_argument("--sets", type=some_of(SETS), default=list(SETS), metavar="A,B", help=", ".join(SETS))
    parser.add_argument("--models", type=some_of(MODELS), default=list(MODELS), metavar="A,B", help=", ".join(MODELS))
    parser.add_argument("--tools", type=some_of(TOOLS), default=list(TOOLS[:5]), metavar="A,B", help=", ".join(TOOLS))
    parser.add_argument("--peers", nargs="+", default=[], metavar="TOOL=FOLDER", help="where a peer's libraries are")
    parser.add_argument("--offers", nargs="+", default=[], metavar="TOOL=JSON", help="such as trl='[{\"batch\": 4}]'")
    parser.add_argument("--set", dest="settings", nargs="+", default=[], metavar="KEY=JSON", help="vlmtune's config")
    parser.add_argument("--gpus", default="0", help="numbers of GPUs, runs side by side on each: 0,1,2,3")
    parser.add_argument("--limit", type=float, default=3600.0, metavar="S", help="no run goes on for longer")
    parser.add_argument("--run-limit", type=float, default=400.0, metavar="S", help="the same of each run")
    parser.add_argument("--folder", type=Path, help="where 50 GB of models go for the while; default: temporary files")
    parser.add_argument(
        "--costs", action="store_true", help="add operations and predicted time to what is measured; needs no GPU"
    )
    return parser.parse_args()


if __name__ == "__main__":
    given = arguments()
    add_costs(given.out) if given.costs else measure(given)
