"""An epoch with the tower and with cached features, on the GPU at hand: `make gpu-features`.

Qwen2.5-VL-3B at its real size with random weights, rows of one page each (1120×840 px, 100 to 400 characters). Two
epochs: the first is for warming up, the second is timed, with what its kernels take, which costs both some time. Where
there are two GPUs each run has its own.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu.cases import QWEN25_3B, Case, prepare  # noqa: E402
from gpu.profiled import Clock, seconds_of  # noqa: E402
from gpu.timed import visible_cards  # noqa: E402

from vlmtune.runs.versions import library_versions  # noqa: E402

ROOT = Path(__file__).parents[2]
ROWS, ROWS_PER_STEP, EPOCHS = 16, 8, 2
STEPS = ROWS // ROWS_PER_STEP
"""Of an epoch."""
LAST_EPOCH = range(STEPS * (EPOCHS - 1), STEPS * EPOCHS)
PAGE_PX, CHARS = (1120, 840), (100, 400)


def write_rows(path: Path, number: int, picture_px: tuple[int, int], chars: tuple[int, int]) -> None:
    """Write rows of one noisy picture each and so many characters, from least to most."""
    rng, lines = random.Random(0), []
    for row in range(number):
        picture = path.with_name(f"{path.stem}-{row}.jpg")
        Image.effect_noise(picture_px, 64).convert("RGB").save(picture)
        words = "".join(rng.choice("abcdefgh ") for _ in range(rng.randint(*chars)))
        half = len(words) // 2
        lines.append(json.dumps({"image": picture.name, "question": f"a{words[:half]}", "answer": f"b{words[half:]}b"}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def run(folder: Path, cached: bool) -> dict:
    """Train in this process and return what it took."""
    from rich.console import Console

    from vlmtune.config.schema import TrainingConfig
    from vlmtune.data.features import prepare as features
    from vlmtune.data.run_data import MeasuredRows, RunData
    from vlmtune.data.samples import read_samples
    from vlmtune.engine import train as engine
    from vlmtune.engine.monitor import LiveView
    from vlmtune.engine.runtime import probe_device, quiet_libraries
    from vlmtune.hub.source import open_model
    from vlmtune.plan.decide import make_plan
    from vlmtune.plan.file import save_plan
    from vlmtune.runs.folder import RunFolder

    quiet_libraries()
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    training = {"num_epochs": EPOCHS, "gradient_accumulation_steps": ROWS_PER_STEP, "save_steps": 1000}
    values = {
        "experiment_name": f"cached-{cached}",
        "output_dir": str(folder / "runs"),
        "model": {"name": str(folder / "model")},
        "data": {"train_path": str(folder / "pages.jsonl"), "cache_features": cached},
        "training": training,
    }
    config = TrainingConfig.model_validate(values)
    clock, encoding_s, real = Clock(LAST_EPOCH), [0.0], features.encode_into
    services = engine._services
    engine._services = lambda plan, run_folder: [*services(plan, run_folder), clock]

    def timed(*args) -> None:
        started = time.perf_counter()
        real(*args)
        encoding_s[0] = time.perf_counter() - started

    features.encode_into = timed
    source, samples = open_model(config.model.name, None, folder), read_samples(folder / "pages.jsonl").samples
    plan = make_plan(config, source, probe_device())
    runs = RunFolder.create(config.run_dir)
    save_plan(plan, runs.plan)
    with LiveView("features", Console(file=open(os.devnull, "w"))) as view:  # noqa: SIM115
        report = engine.train(plan, source, RunData(MeasuredRows(samples), MeasuredRows([])), runs, view)
    losses = [json.loads(line)["loss"] for line in runs.log.read_text(encoding="utf-8").splitlines()]
    cache_bytes = sum(path.stat().st_size for path in (folder / "cache").rglob("*.safetensors"))
    return {
        "cached": cached,
        "seconds_of_epochs": [sum(clock.seconds[step : step + STEPS]) for step in range(0, STEPS * EPOCHS, STEPS)],
        "kernel_seconds_of_last_epoch": seconds_of(clock.spans),
        "launches_of_last_epoch": len(clock.spans),
        "encoding_s_with_loading": encoding_s[0],
        "cache_bytes": cache_bytes,
        "reserved_bytes": report.peak_reserved_bytes,
        "allocated_bytes": report.peak_allocated_bytes,
        "data_wait_share": report.data_wait_share,
        "losses": losses,
        "gpu": report.gpu,
    }


def main(out: Path, catalogue: Path, model: str) -> None:
    """Write both runs' figures to `out`."""
    with tempfile.TemporaryDirectory() as name:
        folder, runs = Path(name), []
        prepare(Case("features", model), catalogue, folder)
        weights = [sys.executable, ROOT / "tests/gpu/measure.py", "--weights", folder / "model"]
        subprocess.run([*map(str, weights)], check=True)
        write_rows(folder / "pages.jsonl", ROWS, PAGE_PX, CHARS)
        cards, both = visible_cards(), (False, True)
        with ThreadPoolExecutor(len(cards)) as pool:
            started = [pool.submit(started_run, folder, cached, cards[cached % len(cards)]) for cached in both]
            for done in as_completed(started):
                runs.append(done.result())
                text = json.dumps({"versions": library_versions(), "runs": runs}, indent=1)
                out.write_text(text + "\n", encoding="utf-8")


def started_run(folder: Path, cached: bool, card: str) -> dict:
    """Train in a process of its own on a card."""
    result = folder / f"{cached}.json"
    command = [sys.executable, __file__, "--run", str(folder), str(cached), str(result)]
    subprocess.run(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": card}, check=True)
    return json.loads(result.read_text(encoding="utf-8"))


if __name__ == "__main__":
    if sys.argv[1] == "--run":
        _, _, where, is_cached, target = sys.argv
        Path(target).write_text(json.dumps(run(Path(where), is_cached == "True")), encoding="utf-8")
    else:
        given = sys.argv[1:]
        main(Path(given[0]), Path(given[1]) if given[1:] else ROOT / "vlmtune/catalog", (*given[2:], QWEN25_3B)[0])
