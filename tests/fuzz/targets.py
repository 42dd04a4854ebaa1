"""What is fuzzed: a function a kind of input writes one from a seed, and reads it as vlmtune does."""

import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from fuzz import mutate
from PIL import Image
from tiny import save_tiny
from tiny.rows import tiny_plan

from vlmtune.config.load import load_config
from vlmtune.data.images import check_images, image_size_px, open_image
from vlmtune.data.samples import read_samples
from vlmtune.data.types import ImageRef, RowProblem
from vlmtune.errors import VlmtuneError
from vlmtune.hub.shards import INDEX, SINGLE, stored_tensors
from vlmtune.models.build import build_tuned, check_checkpoint, load_base
from vlmtune.models.processor import load_processor
from vlmtune.plan.file import load_plan, save_plan
from vlmtune.runs.adapter import base_in_words
from vlmtune.runs.folder import RunFolder
from vlmtune.runs.manifest import damage
from vlmtune.runs.whole import read_image_size

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
ROWS = [
    {"image": "a.png", "question": "Which?", "answer": "one"},
    {"images": ["a.png", "b.png"], "prompt": "Which?", "response": "two", "system": "be brief"},
    {
        "id": 1,
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}],
    },
    {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "q"}]},
            {"role": "assistant", "content": "a", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    },
    {"image": "a.png", "objects": {"bbox": [[1, 2, 30, 40]], "categories": ["dog"]}, "width": 64, "height": 48},
    {"image": {"bytes": None, "path": "a.png"}, "text": "USER: q ASSISTANT: a", "label": 3},
]
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "ICO", "TGA", "JPEG2000", "DDS", "PCX")
MODELS = ("llava", "qwen3_vl", "gemma3", "smolvlm", "instructblip")
Read = Callable[[Path, random.Random], None]


@dataclass(frozen=True)
class Target:
    """One kind of input."""

    read: Read
    share: float
    """Of all inputs: what is read in no time is tried more often."""


TARGETS: dict[str, Target] = {}


def target(share: float) -> Callable[[Read], Read]:
    """Put a function among the targets."""

    def put(read: Read) -> Read:
        TARGETS[read.__name__] = Target(read, share)
        return read

    return put


@cache
def model(name: str) -> Path:
    """A good tiny model."""
    return save_tiny(name, Path(_ROOT[0]) / name)


@cache
def trained() -> tuple[Path, object]:
    """A good adapter and its plan."""
    from vlmtune.engine.checkpoints import save_adapter
    from vlmtune.models.build import build_model

    plan = tiny_plan(model("llava"), training={"method": "lora"})
    folder = Path(_ROOT[0]) / "adapter"
    save_adapter(build_model(plan), folder)
    return folder, plan


_ROOT: list[str] = []


def keep_in(folder: Path) -> None:
    """Say where good files are kept."""
    _ROOT[:] = [str(folder)]


def _pictures(folder: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 48), "red").save(folder / name)


def _read_rows(path: Path) -> None:
    rows = read_samples(path)
    check_images(rows.samples, num_threads=1)


@target(0.18)
def jsonl(folder: Path, rng: random.Random) -> None:
    _pictures(folder)
    lines = [mutate.json_of(rng.choice(ROWS), rng) for _ in range(rng.randint(1, 4))]
    content = b"\n".join(lines)
    (folder / "rows.jsonl").write_bytes(mutate.bytes_of(content, rng) if rng.random() < 0.2 else content)
    _read_rows(folder / "rows.jsonl")


@target(0.08)
def json_array(folder: Path, rng: random.Random) -> None:
    _pictures(folder)
    (folder / "rows.json").write_bytes(mutate.json_of(rng.choice((ROWS, {"data": ROWS}, ROWS[:1])), rng))
    _read_rows(folder / "rows.json")


@target(0.06)
def parquet(folder: Path, rng: random.Random) -> None:
    _pictures(folder)
    rows = mutate.value_of([rng.choice(ROWS)] * 2, rng)
    try:
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, folder / "rows.parquet")
    except (pa.ArrowException, TypeError, AttributeError, UnicodeEncodeError, OverflowError):
        pq.write_table(pa.Table.from_pylist([ROWS[0]]), folder / "rows.parquet")
    if rng.random() < 0.5:
        content = (folder / "rows.parquet").read_bytes()
        (folder / "rows.parquet").write_bytes(mutate.bytes_of(content, rng))
    _read_rows(folder / "rows.parquet")


@target(0.1)
def yaml_config(folder: Path, rng: random.Random) -> None:
    content = rng.choice(CONFIGS).read_bytes()
    (folder / "x.yaml").write_bytes(mutate.bytes_of(content, rng))
    values = mutate.value_of(["training.max_steps=3", "data.max_length=9", "preset=8gb"], rng)
    texts = [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
    load_config(folder / "x.yaml", texts if rng.random() < 0.3 else ())


@target(0.16)
def picture(folder: Path, rng: random.Random) -> None:
    kind, stream = rng.choice(FORMATS), io.BytesIO()
    Image.effect_noise((rng.randint(1, 70), rng.randint(1, 50)), 64).convert("RGB").save(stream, kind)
    (folder / "a.png").write_bytes(mutate.bytes_of(stream.getvalue(), rng))
    ref = ImageRef(path=str(folder / "a.png"))
    try:
        image_size_px(ref)
        open_image(ref, rng.choice((None, 28)))
    except RowProblem:
        pass


@target(0.14)
def model_config(folder: Path, rng: random.Random) -> None:
    name = rng.choice(MODELS)
    shutil.copytree(model(name), folder / "model")
    file = rng.choice(("config.json", "config.json", "processor_config.json", "preprocessor_config.json"))
    good = folder / "model" / file
    value = json.loads(good.read_bytes()) if good.is_file() else {"size": {"height": 28, "width": 28}}
    good.write_bytes(mutate.json_of(value, rng))
    check_checkpoint(tiny_plan(folder / "model"))


@target(0.12)
def header(folder: Path, rng: random.Random) -> None:
    content = (model("llava") / SINGLE).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    text = mutate.json_of(json.loads(content[8:start]), rng)
    length = rng.choice((len(text), len(text), rng.randrange(2**64), rng.randrange(2 * len(text) + 1)))
    (folder / SINGLE).write_bytes(length.to_bytes(8, "little") + text + content[start:])
    stored_tensors(folder)


@target(0.05)
def index(folder: Path, rng: random.Random) -> None:
    shutil.copy(model("llava") / SINGLE, folder / "a.safetensors")
    names = stored_tensors(model("llava"))
    (folder / INDEX).write_bytes(
        mutate.json_of({"metadata": {}, "weight_map": dict.fromkeys(names, "a.safetensors")}, rng)
    )
    stored_tensors(folder)


@target(0.01)
def weights(folder: Path, rng: random.Random) -> None:
    shutil.copytree(model("llava"), folder / "model")
    path = folder / "model" / rng.choice((SINGLE, "generation_config.json", "config.json"))
    content = path.read_bytes() if path.is_file() else b"{}"
    path.write_bytes(mutate.bytes_of(content, rng))
    load_base(tiny_plan(folder / "model"))


@target(0.01)
def adapter(folder: Path, rng: random.Random) -> None:
    good, plan = trained()
    shutil.copytree(good, folder / "adapter")
    config = json.loads((good / "adapter_config.json").read_bytes())
    (folder / "adapter" / "adapter_config.json").write_bytes(mutate.json_of(config, rng))
    if rng.random() < 0.5:
        path = folder / "adapter" / "adapter_model.safetensors"
        path.write_bytes(mutate.bytes_of(path.read_bytes(), rng))
    base_in_words(folder / "adapter")
    build_tuned(plan, str(folder / "adapter"))


@target(0.01)
def processor(folder: Path, rng: random.Random) -> None:
    shutil.copytree(model(rng.choice(MODELS)), folder / "model")
    files = [path for path in sorted((folder / "model").iterdir()) if path.suffix in (".json", ".jinja")]
    path = rng.choice([path for path in files if path.name not in ("config.json", "generation_config.json")])
    is_json = path.suffix == ".json" and rng.random() < 0.8
    make, good = (mutate.json_of, json.loads(path.read_bytes())) if is_json else (mutate.bytes_of, path.read_bytes())
    path.write_bytes(make(good, rng))
    load_processor(tiny_plan(folder / "model"))


LOG = {"step": 1, "total_steps": 9, "epoch": 0.5, "loss": 1.5, "learning_rate": 1e-4, "grad_norm": None}
LOG |= {"tokens_per_s": 1.0, "samples_per_s": 1.0, "data_wait_share": 0.1, "elapsed_s": 1.0, "eta_s": 2.0}
MANIFEST = {"a.json": {"bytes": 2, "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}}
MEMORY = {"peak_reserved_bytes": 10**9, "peak_allocated_bytes": 10**9}
OUTCOME = {"status": "finished", "steps": 9}


@target(0.08)
def run_folder(folder: Path, rng: random.Random) -> None:
    run = RunFolder(folder)
    save_plan(tiny_plan(model("llava")), run.plan)
    (folder / "a.json").write_text("{}")
    files = {
        run.plan: json.loads(run.plan.read_bytes()),
        run.estimate: MEMORY,
        run.report_json: OUTCOME,
        folder / "manifest.json": MANIFEST,
        folder / "vlmtune.json": {"image_size": 28},
        run.retries: [{"key": "a", "before": "1", "after": "2", "reason": "b"}],
    }
    path = rng.choice(list(files))
    path.write_bytes(mutate.json_of(files[path], rng))
    run.log.write_bytes(b"\n".join(mutate.json_of(LOG, rng) for _ in range(3)))
    readers = (run.read_log, lambda: load_plan(run.plan), run.learned, run.read_outcome, lambda: damage(folder))
    readers += (
        lambda: read_image_size(folder),
        lambda: run.estimate.exists() and run.read_estimate(),
        run.read_retries,
    )
    for read in readers:
        try:
            read()
        except VlmtuneError:
            continue
