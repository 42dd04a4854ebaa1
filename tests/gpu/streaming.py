"""Times passes with layers in main memory on the GPU at hand: how much of what travels is hidden behind the computing.

    python tests/gpu/streaming.py OUT.json vlmtune/catalog

A model of real size with random weights; forward and backward pass of one row, with none of its layers streamed and
with some. What could be hidden is the shorter of the time that the bytes take at the measured bandwidth of pinned
copies, and the time of a pass without streaming; what is hidden is what both together take less than one by one.
Kernel times come from the profiler, in a pass of its own. Losses and gradients are compared with those without.
"""

import argparse
import dataclasses
import gc
import hashlib
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu.cases import UNSEEN, Case, prepare  # noqa: E402
from gpu.measure import made_on_the_card  # noqa: E402
from gpu.profiled import kernels_of, on_card, seconds_of, seconds_of_both  # noqa: E402

from vlmtune.data.collate import WHERE, Collator  # noqa: E402
from vlmtune.data.dataset import TuneDataset  # noqa: E402
from vlmtune.engine.runtime import probe_device, quiet_libraries  # noqa: E402
from vlmtune.engine.step import forward_loss  # noqa: E402
from vlmtune.models import build  # noqa: E402
from vlmtune.models.processor import load_processor  # noqa: E402
from vlmtune.models.streaming import LayerStream, stream_of  # noqa: E402
from vlmtune.plan.decide import make_plan  # noqa: E402
from vlmtune.plan.types import RunPlan  # noqa: E402
from vlmtune.runs.versions import library_versions  # noqa: E402

WARM_UP, PASSES, COPIES = 3, 9, 20
FROM_MAIN_MEMORY = "Memcpy HtoD"


@dataclass(frozen=True)
class Passes:
    """Forward and backward passes of one row. Times in seconds, medians."""

    streamed_layers: int
    tokens: int
    wall_s: float
    kernels_s: float
    """Sum over all kernels."""
    copies_s: float
    """Sum over all copies to the card."""
    copies_beside_kernels_s: float
    """Time of copies during which a kernel ran."""
    kinds_of_copies: tuple[str, ...]
    copied_bytes: int
    """Of streamed layers."""
    bandwidth: float | None
    """Bytes a second of a pinned copy of one layer, alone."""
    peak_allocated_bytes: int
    loss: float
    gradients_sha256: str


def one_pass(model: nn.Module, plan: RunPlan, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss; gradients are new ones."""
    model.zero_grad(set_to_none=True)
    loss = forward_loss(model, batch, plan, num_items=1)
    loss.backward()
    return loss.detach()


def passes_of(plan: RunPlan, batch: dict[str, Tensor]) -> Passes:
    """Build the model and time it."""
    model = build.build_model(plan).train()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.02)
    stream, walls = stream_of(build.base_of(model)), []
    for _ in range(WARM_UP):
        loss = one_pass(model, plan, batch)
    torch.cuda.reset_peak_memory_stats()
    before = stream.copied_bytes if stream else 0
    for _ in range(PASSES):
        torch.cuda.synchronize()
        started = time.perf_counter()
        one_pass(model, plan, batch)
        torch.cuda.synchronize()
        walls.append(time.perf_counter() - started)
    copied_bytes = (stream.copied_bytes - before) // PASSES if stream else 0
    kernels_s, copies_s, beside_s, kinds = device_times(lambda: one_pass(model, plan, batch))
    return Passes(
        streamed_layers=plan.streamed_layers,
        tokens=batch["labels"].shape[1],
        wall_s=statistics.median(walls),
        kernels_s=kernels_s,
        copies_s=copies_s,
        copies_beside_kernels_s=beside_s,
        kinds_of_copies=kinds,
        copied_bytes=copied_bytes,
        bandwidth=bandwidth_of(stream) if stream else None,
        peak_allocated_bytes=torch.cuda.max_memory_allocated(),
        loss=loss.item(),
        gradients_sha256=digest_of(model),
    )


def device_times(run) -> tuple[float, float, float, tuple[str, ...]]:
    """Return the times of kernels, of copies to the card, and of both at once, and the names of those copies."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        run()
        torch.cuda.synchronize()
    spans = on_card(profiled)
    copies, kernels = [span for span in spans if span.name.startswith(FROM_MAIN_MEMORY)], kernels_of(spans)
    names = tuple(sorted({span.name for span in copies}))
    return seconds_of(kernels), seconds_of(copies), seconds_of_both(copies, kernels), names


def bandwidth_of(stream: LayerStream) -> float:
    """Return the bytes a second with which layers come from main memory when nothing else is done."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    sources = stream.on_host
    begin.record()
    for number in range(COPIES):
        source = sources[number % len(sources)]
        stream.buffers[number % 2][: source.nbytes].copy_(source, non_blocking=True)
    end.record()
    end.synchronize()
    num_bytes = sum(sources[number % len(sources)].nbytes for number in range(COPIES))
    return num_bytes / (begin.elapsed_time(end) / 1e3)


def digest_of(model: nn.Module) -> str:
    """Return what all gradients are, to the bit."""
    found = hashlib.sha256()
    for parameter in model.parameters():
        if parameter.grad is not None:
            found.update(parameter.grad.cpu().numpy().tobytes())
    return found.hexdigest()


def hidden_share(plain: Passes, streamed: Passes) -> float:
    """Return how much is hidden of what could be."""
    travelling_s = streamed.copied_bytes / streamed.bandwidth
    return (travelling_s + plain.wall_s - streamed.wall_s) / min(travelling_s, plain.wall_s)


def compared(plain: Passes, streamed: Passes) -> dict:
    """Return the passes with what they are beside those without streaming."""
    return asdict(streamed) | {
        "hidden_share": hidden_share(plain, streamed),
        "loss_equal": streamed.loss == plain.loss,
        "gradients_equal": streamed.gradients_sha256 == plain.gradients_sha256,
    }


def rows_of(name: str, chars: int, catalogue: Path, streamed: list[int], folder: Path) -> list[dict]:
    """Return the passes of a row of this length: twice with no layer streamed, then with each number of them."""
    config, source, samples = prepare(Case("streaming", name, text_chars=chars), catalogue, folder / str(chars))
    plan, found = make_plan(config, source, probe_device()), []
    processor = load_processor(plan)
    rows = TuneDataset(samples, processor, build.family_of(plan), plan)
    batch = Collator(processor)([rows[len(rows) - 1]])
    batch = {key: value.cuda() for key, value in batch.items() if key != WHERE}
    for number in (0, 0, *streamed):
        found.append(passes_of(dataclasses.replace(plan, streamed_layers=number), batch))
        gc.collect()
        torch.cuda.empty_cache()
    plain, again, *rest = found
    repeats = {"repeats_to_the_bit": again.gradients_sha256 == plain.gradients_sha256}
    return [asdict(plain) | repeats, *(compared(plain, one) for one in rest)]


def main() -> None:
    """Time every length and number of streamed layers and write them to a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("catalogue", type=Path)
    parser.add_argument("--model", default=UNSEEN["llava-13b"], help="folder in the catalogue")
    parser.add_argument("--streamed", type=int, nargs="+", default=[38])
    parser.add_argument("--text-chars", type=int, nargs="+", default=[5000])
    asked = parser.parse_args()
    quiet_libraries()
    build.load_base = lambda plan, **how: made_on_the_card(plan)
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for chars in asked.text_chars:
            for run in rows_of(asked.model, chars, asked.catalogue, asked.streamed, Path(folder)):
                runs.append(run)
                print(json.dumps(run), flush=True)
    known = {"gpu": torch.cuda.get_device_name(0), "model": asked.model, "versions": library_versions()}
    asked.out.write_text(json.dumps(known | {"runs": runs}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
