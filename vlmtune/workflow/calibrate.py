"""Measures the GPU at hand: its context, what cuBLAS keeps, a short real run beside its estimate, how fast it is."""

import gc
import io
import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import Tensor

import vlmtune
from vlmtune.compat.torch import CLEAR_CUBLAS_WORKSPACES
from vlmtune.config.schema import TrainingConfig
from vlmtune.console import SafeConsole
from vlmtune.data.run_data import MeasuredRows, RunData
from vlmtune.data.samples import read_samples
from vlmtune.engine.monitor import LiveView
from vlmtune.engine.runtime import probe_device, quiet_libraries
from vlmtune.engine.train import train
from vlmtune.errors import VlmtuneError
from vlmtune.estimate.given_rows import GivenRows
from vlmtune.estimate.run import estimate_plan
from vlmtune.estimate.timing.measured import measured_plain_launch_s, measured_speeds
from vlmtune.hardware.at_hand import calibrated, own_bytes, reading_at_hand, setup_at_hand, target_at_hand, with_speeds
from vlmtune.hardware.calibration import Calibration, Figures, ShortRun
from vlmtune.hardware.sensors import GpuReading
from vlmtune.hub.source import ModelSource, open_model
from vlmtune.plan.decide import make_plan
from vlmtune.plan.file import save_plan
from vlmtune.plan.types import RunPlan
from vlmtune.runs.folder import RunFolder
from vlmtune.units import MIB

NEEDED_BYTES = 1024 * MIB
LIKELY_CONTEXT_BYTES = range(64 * MIB, 2048 * MIB)
"""Outside of it, what was measured is not a context: another program took or gave back memory meanwhile."""
SIDE = 256
NUM_ROWS, NUM_STEPS = 16, 6
"""Of a step, one after another, and steps: so many rows that logs and callbacks, tens of milliseconds a step on a slow
processor, weigh as little beside launches as in a real run."""
TEXT_CHARS = 600
DEMO_MODEL = Path(vlmtune.__file__).parent / "demo" / "model"
VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 6, "num_attention_heads": 12}
VISION_PIXELS = {"image_size": 336, "patch_size": 14}
TEXT = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16}
TEXT_SIZES = {"num_key_value_heads": 16, "head_dim": 64, "vocab_size": 16_384, "max_position_embeddings": 4096}
"""With the demo's tokenizer, a LLaVA of 180 million parameters: 0.4 GiB at its peak, and written in seconds."""


@dataclass(frozen=True)
class SmallRun:
    """A training run with all it needs."""

    plan: RunPlan
    source: ModelSource
    rows: MeasuredRows


def calibrate(say: Callable[[str], None]) -> Calibration:
    """Return what was measured of the GPU at hand; `say` is told what is being done.

    To be called before this process has a CUDA context.

    Raises:
        VlmtuneError: there is no GPU, or too little of its memory is free.
    """
    target = target_at_hand()
    if target.budget_bytes < NEEDED_BYTES:
        free_mib, needed_mib = target.budget_bytes // MIB, NEEDED_BYTES // MIB
        raise VlmtuneError(
            f"{target.card.name} has {free_mib:,} MiB free, calibrating takes {needed_mib:,}",
            "close what uses the card; vlmtune doctor lists it",
        )
    quiet_libraries()
    before = reading_at_hand()
    say("measuring what cuBLAS keeps")
    cublas_bytes = measure_cublas("cuda")
    _forget_cublas()
    # Windows removes no file that a model has mapped into memory.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        say("training a small model with random weights")
        run = small_run(Path(folder))
        reserved_bytes, allocated_bytes, steps_s = trained(run, Path(folder))
        figures = Figures(_context_bytes(before, reading_at_hand()), cublas_bytes)
        say("measuring how fast the card is")
        speeds = measured_speeds("cuda")
        say("estimating the same run")
        card = with_speeds(calibrated(target.card, figures), speeds)
        report = estimate_plan(run.plan, run.source, GivenRows(run.rows), replace(target, card=card))
    speeds = replace(speeds, plain_launch_s=measured_plain_launch_s(steps_s, report.time))
    check = ShortRun(report.peak_reserved_bytes, reserved_bytes, report.peak_allocated_bytes, allocated_bytes)
    return Calibration(setup_at_hand(), figures, check, speeds)


def measure_cublas(device: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the blocks that the first matrix products of this process keep: of the forward pass, of the backward."""
    rows, weight = (torch.ones(SIDE, SIDE, dtype=torch.float16, device=device, requires_grad=True) for _ in range(2))
    bias = torch.ones(SIDE, dtype=torch.float16, device=device)
    at_first = _held_blocks()
    product = rows @ weight
    with_bias = F.linear(product, weight, bias)
    forward = _kept(at_first, product, with_bias)
    loss = with_bias.sum()
    after_forward = _held_blocks()
    loss.backward()
    backward = _kept(after_forward, rows.grad, weight.grad)
    return forward, backward


def _held_blocks() -> dict[int, int]:
    """Return what PyTorch's allocator has given out: size by address."""
    blocks = [block for segment in torch.cuda.memory_snapshot() for block in segment["blocks"]]
    return {block["address"]: block["size"] for block in blocks if block["state"] == "active_allocated"}


def _kept(before: dict[int, int], *made: Tensor) -> tuple[int, ...]:
    """Return the sizes of the blocks that were not there before and hold none of the tensors, the largest first."""
    known = {*before, *(tensor.data_ptr() for tensor in made)}
    return tuple(sorted((size for address, size in _held_blocks().items() if address not in known), reverse=True))


def _forget_cublas() -> None:
    """Give the workspaces back: the run that follows makes its own at its own time."""
    CLEAR_CUBLAS_WORKSPACES()
    gc.collect()
    torch.cuda.empty_cache()


def _context_bytes(before: GpuReading | None, after: GpuReading | None) -> int | None:
    """Return what this process takes of the card outside of PyTorch's allocator; None where that cannot be told."""
    if before is None or after is None:
        return None
    own = own_bytes(after)
    taken = after.used_bytes - before.used_bytes if own is None else own
    outside = taken - torch.cuda.memory_reserved()
    return outside if outside in LIKELY_CONTEXT_BYTES else None


def small_run(folder: Path) -> SmallRun:
    """Return a run of a small model with random weights, its files written into `folder`."""
    _write_model(folder / "model")
    _write_rows(folder)
    config = TrainingConfig.model_validate(
        {
            "experiment_name": "calibration",
            "output_dir": str(folder / "runs"),
            "model": {"name": str(folder / "model")},
            "data": {"train_path": str(folder / "rows.jsonl"), "max_length": 4096},
            "training": {"max_steps": NUM_STEPS, "gradient_accumulation_steps": NUM_ROWS, "save_steps": 1000},
            "hardware": {"num_workers": 0},
        }
    )
    source = open_model(config.model.name, None, folder)
    rows = MeasuredRows(read_samples(folder / "rows.jsonl").samples)
    return SmallRun(make_plan(config, source, probe_device()), source, rows)


def _write_model(folder: Path) -> None:
    """The demo's processor, and a larger model of its kind."""
    config = transformers.AutoConfig.from_pretrained(DEMO_MODEL, trust_remote_code=False)
    config.vision_config.update(VISION | VISION_PIXELS)
    config.text_config.update(TEXT | TEXT_SIZES)
    side, patch = VISION_PIXELS["image_size"], VISION_PIXELS["patch_size"]
    config.image_seq_length = (side // patch) ** 2
    processor = transformers.AutoProcessor.from_pretrained(DEMO_MODEL, trust_remote_code=False)
    processor.patch_size = patch
    processor.image_processor.size = {"shortest_edge": side}
    processor.image_processor.crop_size = {"height": side, "width": side}
    model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _write_rows(folder: Path) -> None:
    """Rows of equal length: the longest one is every one."""
    Image.effect_noise((336, 336), 64).convert("RGB").save(folder / "noise.png")
    words = "".join(random.Random(0).choice("abcdefgh ") for _ in range(TEXT_CHARS)).replace("  ", "a ")
    half = TEXT_CHARS // 2
    row = {"image": "noise.png", "question": words[:half].strip(), "answer": words[half:].strip()}
    (folder / "rows.jsonl").write_text((json.dumps(row) + "\n") * NUM_ROWS, encoding="utf-8")


def trained(run: SmallRun, folder: Path) -> tuple[int, int, list[float]]:
    """Train; return the peaks of reserved and of allocated memory, and the seconds of each step but the first.

    Without those that went by until rows were read, which no launch takes and no prediction has.
    """
    runs = RunFolder.create(folder / "runs" / "calibration")
    save_plan(run.plan, runs.plan)
    with LiveView("calibration", SafeConsole(file=io.StringIO())) as view:
        train(run.plan, run.source, RunData(run.rows, MeasuredRows([])), runs, view)
    peaks = torch.cuda.max_memory_reserved(), torch.cuda.max_memory_allocated()
    gc.collect()
    between = pairwise(runs.read_log())
    return *peaks, [(end.elapsed_s - start.elapsed_s) * (1 - end.data_wait_share) for start, end in between]
