"""Losses with and without what saves time, step by step, on every visible GPU: `make gpu-equal`.

Qwen2.5-VL-3B at its real size with random weights, three seeds, 50 steps of 8 short rows whose answers can be learned.
Each seed trains with PEFT's forward twice (two equal runs differ too: a card adds in any order), with lean adapters,
with all that saves kernels, in packs, and with these as CUDA graphs. A seed decides the base's weights, the adapters'
first ones and the order of rows. Nothing is timed, so several processes share a card. docs/renew.py makes the table of
docs/speed.md.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu.cases import QWEN25_3B, Case, prepare  # noqa: E402
from gpu.lean import VARIANTS  # noqa: E402
from gpu.measure import made_on_the_card  # noqa: E402
from gpu.profiled import Clock, free_card  # noqa: E402
from gpu.timed import dealt, on_every_card  # noqa: E402

CATALOGUE = Path(__file__).parents[2] / "vlmtune" / "catalog"
SEEDS, STEPS, ROWS_PER_STEP, PACK_TOKENS = (1, 2, 3), 50, 8, 1024
TOPICS, SIDES_PX = 8, (112, 168, 224)
NORMS = ("norm.weight", "norm1.weight", "norm2.weight", "ln_q.weight")
BATCHES = {"batch_size": ROWS_PER_STEP, "gradient_accumulation_steps": 1}
PACKS = {"gradient_accumulation_steps": ROWS_PER_STEP, "packing": True, "pack_tokens": PACK_TOKENS}
RUNS = {
    "peft": (VARIANTS["peft"], BATCHES),
    "lean": (VARIANTS["lean"], BATCHES),
    "packs": (VARIANTS["fused"], PACKS),
    "graphs": ({**VARIANTS["fused"], "cuda_graphs": True}, PACKS),
    "again": (VARIANTS["peft"], BATCHES),
}
"""What each run has in its sections `hardware` and `training`."""


def in_order() -> list[str]:
    """Return the runs, seed after seed."""
    return [f"{kind}-{seed}" for seed in SEEDS for kind in RUNS]


def write_rows(path: Path) -> None:
    """Write rows of one picture, of several sizes, and an answer of 20 to 80 characters that the question decides."""
    rng = random.Random(0)
    sides = [(width, height) for width in SIDES_PX for height in SIDES_PX]
    for number, size in enumerate(sides):
        Image.effect_noise(size, 64).convert("RGB").save(path.with_name(f"{number}.png"))
    answers = ["".join(rng.choice("abcdefgh ") for _ in range(rng.randint(20, 80))) for _ in range(TOPICS)]
    lines = []
    for _ in range(STEPS * ROWS_PER_STEP):
        topic = rng.randrange(TOPICS)
        question, picture = f"Topic {topic}? " + "x" * rng.randint(0, 60), f"{rng.randrange(len(sides))}.png"
        lines.append(json.dumps({"image": picture, "question": question, "answer": f"b{answers[topic]}b"}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@contextmanager
def same_steps(seed: int, clock: Clock) -> Iterator[None]:
    """Let the engine make this seed's weights on the card and take the same rows in every step, packed or not.

    The step with the largest pack would come first, and so others later.
    """
    from vlmtune.data.batches.order import LengthGroupedOrder
    from vlmtune.engine import train as engine
    from vlmtune.models import build

    def made(plan, **how) -> torch.nn.Module:
        torch.manual_seed(seed)
        model = made_on_the_card(plan)
        for name, weight in model.named_parameters():
            if name.endswith(NORMS):  # random ones would leave next to nothing of what goes through the model
                torch.nn.init.ones_(weight)
        return model

    services = engine._services
    put = (
        (build, "load_base", made),
        (engine, "check_checkpoint", lambda plan: {}),
        (engine, "_services", lambda plan, folder: [*services(plan, folder), clock]),
        (LengthGroupedOrder, "_largest_pack_first", lambda self, places, lengths: places),
    )
    before = [(module, name, getattr(module, name)) for module, name, _ in put]
    for module, name, new in put:
        setattr(module, name, new)
    yield
    for module, name, old in before:
        setattr(module, name, old)


def trained(name: str, folder: Path) -> dict:
    """Train in this process and return the loss of each step, and the seconds."""
    from rich.console import Console

    from vlmtune.config.schema import TrainingConfig
    from vlmtune.data.run_data import MeasuredRows, RunData
    from vlmtune.data.samples import read_samples
    from vlmtune.engine import train as engine
    from vlmtune.engine.monitor import LiveView
    from vlmtune.engine.runtime import probe_device
    from vlmtune.hub.source import open_model
    from vlmtune.plan.decide import make_plan
    from vlmtune.plan.file import save_plan
    from vlmtune.runs.folder import RunFolder

    kind, _, seed = name.rpartition("-")
    hardware, training = RUNS[kind]
    steps = {"max_steps": STEPS, "save_steps": 1000, "learning_rate": 3e-4, "seed": int(seed)}
    config = TrainingConfig.model_validate(
        {
            "experiment_name": name,
            "output_dir": str(folder / "runs"),
            "model": {"name": str(folder / "model")},
            "data": {"train_path": str(folder / "equal.jsonl"), "cache_features": False},
            "training": {**steps, **training},
            "hardware": {**hardware, "num_workers": 0, "offload_embeddings": False},
        }
    )
    source, samples = open_model(config.model.name, None, folder), read_samples(folder / "equal.jsonl").samples
    plan, clock, started = make_plan(config, source, probe_device()), Clock(), time.perf_counter()
    runs = RunFolder.create(config.run_dir)
    save_plan(plan, runs.plan)
    with same_steps(int(seed), clock), LiveView("equal", Console(file=open(os.devnull, "w"))) as view:  # noqa: SIM115
        report = engine.train(plan, source, RunData(MeasuredRows(samples), MeasuredRows([])), runs, view)
    return {
        "run": kind,
        "seed": int(seed),
        **{key: getattr(plan, key) for key in (*hardware, "batch_size", "pack_tokens")},
        "losses": [record.loss for record in runs.read_log()],
        "steps_s": sum(clock.seconds),
        "seconds": time.perf_counter() - started,
        "gpu": report.gpu,
    }


def run_all(names: list[str], results: Path) -> None:
    """Train these runs in this process, one after another."""
    from vlmtune.engine.runtime import quiet_libraries

    quiet_libraries()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        prepare(Case("equal", QWEN25_3B), CATALOGUE, folder)
        write_rows(folder / "equal.jsonl")
        for one in names:
            part = results / f"{one}.part"
            part.write_text(json.dumps(trained(one, folder)), encoding="utf-8")
            part.rename(results / f"{one}.json")
            free_card()


def main() -> int:
    """Train all runs and write after each what is known; return 0 when all are there."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--at-a-time", type=int, default=6, help="processes on a card")
    parser.add_argument("--within", type=float, default=1e9, help="seconds after which nothing is waited for")
    asked = parser.parse_args()
    began, names = time.monotonic(), in_order()
    num_runs = on_every_card(Path(__file__), partial(dealt, names), asked.out, asked.within, asked.at_a_time)
    print(f"{num_runs} of {len(names)} runs, {time.monotonic() - began:.0f} s")
    return int(num_runs < len(names))


if __name__ == "__main__":
    if sys.argv[1] == "--these":
        run_all(sys.argv[3:], Path(sys.argv[2]))
    else:
        sys.exit(main())
