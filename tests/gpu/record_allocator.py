"""Records what the CUDA caching allocator does on this machine, for test_allocator_recorded.py.

    python tests/gpu/record_allocator.py OUT.json

Needs torch and a GPU that nothing else uses. Each scenario makes random allocations and releases, with native or with
expandable segments (a process each: torch reads the setting when it is imported), with and without a limit, and notes
the allocator's own figures every few events.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from vlmtune.units import GIB, MIB

CHECK_EVERY = 25
EMPTY_CACHE, RESET_PEAK = [0, 0], [0, 1]


def log_uniform(rng, low, high):
    return int(low * (high / low) ** rng.random())


def random_sizes(rng, low=1, high=200 * MIB):
    """Returns a function that draws an allocation's size: any size at all."""
    return lambda: log_uniform(rng, low, high)


def repeated_sizes(rng, low=64 << 10, high=64 * MIB):
    """Returns a function that draws an allocation's size from a dozen, so that many free blocks are equally large."""
    sizes = [log_uniform(rng, low, high) for _ in range(12)]
    return lambda: rng.choice(sizes)


class Recorder:
    """Does one event after another on the device and writes down what the allocator says."""

    def __init__(self, torch, name, allowed_bytes=None):
        self.torch, self.tensors, self.events, self.failed = torch, {}, [], []
        self.segments, self.checkpoints, self.live_bytes, self.handle = [], [], 0, 0
        torch.cuda.empty_cache()
        assert torch.cuda.memory_reserved() == 0, f"{name}: the scenario before left something behind"
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.reset_accumulated_memory_stats()
        free_bytes, total_bytes = torch.cuda.mem_get_info()
        self.limited = allowed_bytes is not None
        if self.limited:
            torch.cuda.set_per_process_memory_fraction(allowed_bytes / total_bytes)
        self.head = {
            "name": name,
            "allowed_bytes": int(allowed_bytes / total_bytes * total_bytes) if self.limited else None,
            "device_total_bytes": total_bytes,
            "free_bytes": free_bytes,
        }

    def allocate(self, size_bytes):
        """Returns whether the device had the memory."""
        self.handle += 1
        segments = self.stat("segment.all.allocated")
        self.events.append([self.handle, size_bytes])
        try:
            tensor = self.torch.empty(size_bytes, dtype=self.torch.uint8, device="cuda")
        except self.torch.OutOfMemoryError:
            self.failed.append(len(self.events) - 1)
            self.check()
            return False
        self.tensors[self.handle] = tensor
        self.live_bytes += size_bytes
        if self.stat("segment.all.allocated") > segments:
            self.segments.append([len(self.events) - 1, tensor.data_ptr()])
        self.check_now_and_then()
        return True

    def free(self, handle):
        self.live_bytes -= self.tensors.pop(handle).numel()
        self.events.append([-handle, 0])
        self.check_now_and_then()

    def empty_cache(self):
        self.torch.cuda.empty_cache()
        self.events.append(EMPTY_CACHE)
        self.check()

    def reset_peak(self):
        self.torch.cuda.reset_peak_memory_stats()
        self.events.append(RESET_PEAK)
        self.check()

    def stat(self, name):
        return self.torch.cuda.memory_stats().get(name, 0)

    def check_now_and_then(self):
        if len(self.events) % CHECK_EVERY == 0:
            self.check()

    def check(self):
        stats = self.torch.cuda.memory_stats()
        row = [len(self.events) - 1]
        row += [stats[f"allocated_bytes.all.{kind}"] for kind in ("current", "peak")]
        row += [stats[f"reserved_bytes.all.{kind}"] for kind in ("current", "peak")]
        self.checkpoints.append([*row, stats["num_alloc_retries"]])

    def finish(self):
        for handle in list(self.tensors):
            self.free(handle)
        self.check()
        self.empty_cache()
        if self.limited:
            self.torch.cuda.set_per_process_memory_fraction(1.0)
        return self.head | {
            "events": self.events,
            "failed": self.failed,
            "segments": self.segments,
            "checkpoints": self.checkpoints,
        }


def random_walk(recorder, rng, draw, events, live_limit_bytes):
    """Allocates and frees around a limit of live bytes; at times frees much, empties the cache, starts peaks anew."""
    while len(recorder.events) < events:
        chance = rng.random()
        live = list(recorder.tensors)
        if chance < 0.003:
            recorder.empty_cache()
        elif chance < 0.006:
            recorder.reset_peak()
        elif chance < 0.01:
            for handle in rng.sample(live, len(live) * 2 // 3):
                recorder.free(handle)
        elif live and (recorder.live_bytes > live_limit_bytes or chance < 0.4):
            recorder.free(rng.choice(live))
        elif not recorder.allocate(draw()):
            for handle in rng.sample(live, len(live) // 2):
                recorder.free(handle)


def training_steps(recorder, rng, steps, layers):
    """Lives of tensors as in training: weights stay, activations are freed in reverse, temporaries at once."""
    for _ in range(60):
        recorder.allocate(log_uniform(rng, 512, 12 * MIB))
    for step in range(steps):
        tokens = rng.randrange(200, 1400)
        saved = []
        for _ in range(layers):
            for width in (2048, 2048, 11008, 3):
                if not recorder.allocate(tokens * width * 2):
                    return
                saved.append(recorder.handle)
            if recorder.allocate(tokens * 2048 * 4):
                recorder.free(recorder.handle)
        while saved:
            if recorder.allocate(11008 * 2048 * 2) and rng.random() < 0.9:
                recorder.free(recorder.handle)
            recorder.free(saved.pop())
        if step == 1:
            recorder.reset_peak()


def edges(recorder):
    """Sizes on either side of every limit in the allocator's code, alone and reused."""
    limits = [512, MIB, 2 * MIB, 10 * MIB, 12 * MIB, 20 * MIB, 21 * MIB, 22 * MIB]
    sizes = [size + step for size in limits for step in (-1, 0, 1, 512, 513)]
    for size in sizes:
        recorder.allocate(size)
        recorder.check()
    for handle in list(recorder.tensors)[::2]:
        recorder.free(handle)
        recorder.check()
    for size in reversed(sizes):
        recorder.allocate(size)
        recorder.check()
    for handle in list(recorder.tensors)[::3]:
        recorder.free(handle)
    recorder.empty_cache()
    for size in sizes:
        recorder.allocate(size)
        recorder.check()


def whole_card(recorder, rng, events):
    """Fills the card itself, in gigabytes, without a limit."""
    draw = random_sizes(rng, 32 * MIB, recorder.head["device_total_bytes"] // 10)
    random_walk(recorder, rng, draw, events, recorder.head["free_bytes"] * 5 // 4)


def grown_past_the_total(recorder):
    """A request that cached memory nearly serves, but whose whole size does not fit beside what is reserved."""
    total = recorder.head["device_total_bytes"]
    first = total * 55 // 100
    recorder.allocate(first)
    recorder.free(recorder.handle)
    recorder.allocate(first + GIB)
    recorder.check()


def record(expandable):
    """Returns every scenario in the mode that this process runs in."""
    import torch

    scenarios = []

    def run(name, play, allowed_bytes=None):
        recorder = Recorder(torch, name, allowed_bytes)
        play(recorder)
        scenarios.append({"expandable_segments": expandable, **recorder.finish()})

    run("grown past the total", grown_past_the_total)
    run("edges", edges)
    for seed in range(3):
        for kind, sizes in (("random", random_sizes), ("repeated", repeated_sizes)):
            for limit in (None, 700 * MIB, 1500 * MIB):
                rng = random.Random(f"{kind} {seed} {limit}")
                draw = sizes(rng)
                name = f"{kind} {seed}, {'no limit' if limit is None else f'limit {limit // MIB} MiB'}"
                run(name, lambda r, g=rng, d=draw: random_walk(r, g, d, 1200, 1500 * MIB), limit)
    run("training", lambda r: training_steps(r, random.Random(7), 6, 24))
    run("training, limited", lambda r: training_steps(r, random.Random(7), 6, 24), 1100 * MIB)
    run("whole card", lambda r: whole_card(r, random.Random(3), 600))
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name(),
        "scenarios": scenarios,
    }


def main(argv):
    if len(argv) == 3:
        Path(argv[1]).write_text(json.dumps(record(argv[2] == "True"), separators=(",", ":")))
        return
    target = Path(argv[1])
    whole = None
    for mode in ("False", "True"):
        part = target.with_suffix(f".{mode}.json")
        environment = os.environ | {"PYTORCH_ALLOC_CONF": f"expandable_segments:{mode}"}
        environment.pop("PYTORCH_CUDA_ALLOC_CONF", None)
        subprocess.run([sys.executable, __file__, part, mode], env=environment, check=True)
        read = json.loads(part.read_text())
        part.unlink()
        whole = read if whole is None else whole | {"scenarios": whole["scenarios"] + read["scenarios"]}
    target.write_text(json.dumps(whole, separators=(",", ":")) + "\n")
    failures = sum(len(scenario["failed"]) for scenario in whole["scenarios"])
    retries = sum(scenario["checkpoints"][-1][5] for scenario in whole["scenarios"])
    print(f"{target}: {len(whole['scenarios'])} scenarios, {retries} retries, {failures} failed allocations, ", end="")
    print(f"{target.stat().st_size} bytes, torch {whole['torch']}, {whole['device']}")


if __name__ == "__main__":
    main(sys.argv)
