"""What the allocator did in a measured run, kept small: every event, where steps begin, where one step's memory goes.

`read` gives a history back; `compare.py` has the simulated log to hold beside it.
"""

import json
import lzma
import tarfile
import time
from bisect import bisect_left
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path

import torch
from transformers import TrainerCallback

MAX_ENTRIES = 4_000_000
STEP_WITH_STACKS = 3
"""Its allocations are noted with the lines of Python that made them: by then the optimizer's states exist."""
FRAMES_KEPT = 12
LETTERS = {
    "alloc": "a",
    "free_completed": "f",
    "segment_alloc": "s",
    "segment_free": "r",
    "segment_map": "m",
    "segment_unmap": "u",
    "oom": "o",
}
ARCHIVE_BYTES = 12 << 20


@dataclass
class Mark:
    """A point of the run: what PyTorch's counters showed there."""

    name: str
    time_us: int
    allocated_bytes: int
    reserved_bytes: int
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    event: int = 0
    """Index of the first event after it."""


@dataclass
class History:
    """The events of a run in their order."""

    letters: str = ""
    """One of `LETTERS` an event."""
    values: list[int] = field(default_factory=list)
    """Bytes of what is allocated, how many allocations ago what is freed was made, bytes of a segment."""
    addresses: dict[str, int] = field(default_factory=dict)
    """Index of a segment's event → its address."""
    marks: list[dict] = field(default_factory=list)
    frames: list[str] = field(default_factory=list)
    stacks: list[list[int]] = field(default_factory=list)
    stack_of: dict[str, int] = field(default_factory=dict)
    """Index of an allocation's event → its stack, innermost frame first."""


class Marks(TrainerCallback):
    """Notes where steps begin and end, and asks for the stacks of one of them."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self._mark("train")

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self._mark(f"step {state.global_step + 1}")
        if state.global_step + 1 == STEP_WITH_STACKS:
            record(stacks=True)

    def on_substep_end(self, args, state, control, **kwargs) -> None:
        self._mark("batch done")

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        self._mark("gradients clipped")

    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        self._mark("optimizer done")

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self._mark("step done")
        if state.global_step == STEP_WITH_STACKS:
            record(stacks=False)

    def _mark(self, name: str) -> None:
        cuda = torch.cuda
        now = (cuda.memory_allocated(), cuda.memory_reserved())
        peaks = (cuda.max_memory_allocated(), cuda.max_memory_reserved())
        self.marks.append(Mark(name, time.time_ns() // 1000, *now, *peaks))


def record(stacks: bool) -> None:
    """Let PyTorch write down what its allocator does; what it wrote before stays."""
    context = {"context": "alloc", "stacks": "python"} if stacks else {"context": None}
    torch.cuda.memory._record_memory_history(max_entries=MAX_ENTRIES, **context)


def packed(trace: list[dict], marks: list[Mark]) -> bytes:
    """Return a trace of `torch.cuda.memory._snapshot()`, compressed."""
    events = [entry for entry in trace if entry["action"] in LETTERS]
    history = History(letters="".join(LETTERS[entry["action"]] for entry in events))
    numbers: dict[int, int] = {}
    count = 0
    stacks = _Stacks(history)
    for index, entry in enumerate(events):
        action, address = entry["action"], entry["addr"]
        if action == "alloc":
            numbers[address] = count
            count += 1
            stacks.add(index, entry.get("frames") or [])
        elif action.startswith("segment"):
            history.addresses[str(index)] = address
        # What was allocated before the recording was made never.
        history.values.append(count - numbers.pop(address, count) if action == "free_completed" else entry["size"])
    times = [entry["time_us"] for entry in events]
    for mark in marks:
        mark.event = bisect_left(times, mark.time_us)
    history.marks = [asdict(mark) for mark in marks]
    return lzma.compress(json.dumps(asdict(history), separators=(",", ":")).encode())


class _Stacks:
    """Gives equal stacks and equal frames one number each."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.known: dict[tuple[int, ...], int] = {}
        self.frames: dict[str, int] = {}

    def add(self, index: int, frames: list[dict]) -> None:
        if not frames:
            return
        stack = tuple(self._number(frame) for frame in frames[:FRAMES_KEPT])
        if stack not in self.known:
            self.known[stack] = len(self.known)
            self.history.stacks.append(list(stack))
        self.history.stack_of[str(index)] = self.known[stack]

    def _number(self, frame: dict) -> int:
        file = "/".join(Path(frame["filename"]).parts[-2:])
        text = f"{file}:{frame['line']} {frame['name']}"
        if text not in self.frames:
            self.frames[text] = len(self.frames)
            self.history.frames.append(text)
        return self.frames[text]


def read(compressed: bytes) -> History:
    """Return what `packed` made."""
    return History(**json.loads(lzma.decompress(compressed)))


def archive(folder: Path, name: str, compressed: bytes) -> None:
    """Add a history to the newest `histories-N.tar` of a folder, or start another when that is large."""
    number = 1 + len(list(folder.glob("histories-*.tar")))
    if number > 1 and (folder / f"histories-{number - 1}.tar").stat().st_size + len(compressed) < ARCHIVE_BYTES:
        number -= 1
    with tarfile.open(folder / f"histories-{number}.tar", "a") as tar:
        entry = tarfile.TarInfo(f"{name}.json.xz")
        entry.size = len(compressed)
        tar.addfile(entry, BytesIO(compressed))
