"""What an estimate says: shapes shared by the simulation, the commands and the run's own report. No torch here."""

from dataclasses import dataclass, replace

from vlmtune.levers.speed.graphs import RECORDED_LAUNCH_BYTES
from vlmtune.units import rate


@dataclass(frozen=True)
class Share:
    """One part of the peak."""

    name: str
    bytes: int


@dataclass(frozen=True)
class PeakAt:
    """What was being done when the most memory was allocated."""

    phase: str
    op: str
    module: str


@dataclass(frozen=True)
class Phase:
    """A stretch of the run, such as `load` or `step 2`."""

    name: str
    peak_allocated_bytes: int
    allocated_at_end_bytes: int


@dataclass(frozen=True)
class WithoutWorst:
    """The same run without the longest hundredth of its rows."""

    num_rows: int
    """Rows that are left out."""
    longest_tokens: int
    """Tokens of the longest row that stays."""
    saved_bytes: int
    """What `peak_reserved_bytes` goes down by."""


@dataclass(frozen=True)
class MainMemoryNeed:
    """What a run takes of main memory, all its processes together. Sizes in bytes.

    Pages of mapped files are not counted, weights on their way to the card among them: they can be read again.
    """

    peak_bytes: int = 0
    loading_bytes: int = 0
    """The peak while the model loads."""
    parts: tuple[Share, ...] = ()
    """At the peak; they sum to it."""


@dataclass(frozen=True)
class Spent:
    """What some kernels are predicted to take on a card."""

    kernels_s: float = 0.0
    """One after the other."""
    launches: float = 0.0
    plain_launches: float = 0.0
    """What these are to the processor, in those that torch makes by itself (timing/rates.py)."""
    bus_s: float = 0.0
    """Copies from main memory and to it, beside the kernels."""


@dataclass(frozen=True)
class BatchSpent:
    """What a simulated batch is predicted to take, forward and backward, by what its work follows."""

    tokens: int
    """Padded, or of a pack."""
    image_tokens: int
    of_images: Spent
    of_tokens: Spent


@dataclass(frozen=True)
class StepTime:
    """What an optimizer step is predicted to take on a card, in the mean of the run."""

    step_s: float
    """By the clock."""
    rows_per_s: float
    run_s: float | None
    """The whole run, without loading, evaluations and answers; None where nobody knows how many steps it has."""
    num_steps: int | None
    kernels_s: float
    """All kernels of a step, one after the other."""
    launches: int
    """Kernels of a step."""
    plain_launches: int
    """What these are to the processor, in those that torch makes by itself (timing/rates.py)."""
    launch_s: float
    """What the processor takes for each in the mean."""
    launch_is_measured: bool
    """Whether `vlmtune calibrate` measured that on this machine, or it is assumed."""
    bus_s: float
    """What copies over the bus take in a step, beside the kernels."""
    of_largest: bool
    """Whether there are no rows yet, so that all are taken to be as large as the config allows."""
    exchanged_s: float = 0.0
    """What several GPUs tell each other in a step: the sum of gradients, and layers that they share beside kernels."""

    @property
    def pace(self) -> str:
        """Return seconds a step, rows a second and the run's hours in words."""
        run = "" if self.run_s is None else f", {_long(self.run_s)} for {self.num_steps:,} steps"
        rows = " if all rows are the largest" if self.of_largest else ""
        return f"{self.step_s:,.3g} s a step, {rate(self.rows_per_s)} rows a second{run}{rows}"

    @property
    def limits(self) -> str:
        """Return in words what a step waits for: shares of one that overlap."""
        launches = f"{self.launches:,} launches at {self.launch_s * 1e6:.0f} µs"
        known = "measured" if self.launch_is_measured else "assumed; vlmtune calibrate measures it"
        shares = [f"kernels {self.kernels_s / self.step_s:.0%} of a step"]
        shares += [f"{launches} ({known}) {self.launches * self.launch_s / self.step_s:.0%}"]
        shares += [f"the bus {self.bus_s / self.step_s:.0%}"] if self.bus_s > 0.005 * self.step_s else []
        shares += [f"the other GPUs {self.exchanged_s / self.step_s:.0%}"] if self.exchanged_s else []
        return ", ".join(shares)


@dataclass(frozen=True)
class MemoryReport:
    """What a plan needs on a card. Sizes in bytes; `breakdown` sums to `device_total_bytes`."""

    model: str
    preset: str | None
    gpu: str
    fits: bool
    peak_reserved_bytes: int
    """What `torch.cuda.max_memory_reserved` will show."""
    peak_allocated_bytes: int
    """What `torch.cuda.max_memory_allocated` will show."""
    device_total_bytes: int
    """What the driver will show for the process: reserved, and the CUDA context."""
    budget_bytes: int
    """What PyTorch may reserve on this card: its memory less context and reserve."""
    breakdown: tuple[Share, ...]
    parts: dict[str, int]
    """The allocated peak by when it was taken, as training measures it: `vlmtune.runs.memory.parts_of_peak`."""
    peak_at: PeakAt
    phases: tuple[Phase, ...]
    worst_row: str
    """`train.jsonl:12`, or that it was made up as large as the config allows."""
    tokens: dict[str, int]
    flops_per_row: float
    """Floating-point operations of forward, recomputation and backward for a row, the mean of those simulated."""
    fast: bool
    """Whether one step was simulated and repeated, and no answer."""
    seconds: float
    versions: dict[str, str]
    main_memory: MainMemoryNeed = MainMemoryNeed()
    main_memory_available_bytes: int | None = None
    """What the run may take of this machine's; None where it is for another machine, or nobody tells."""
    streamed_bytes_per_step: int = 0
    """What comes from main memory to the card in one optimizer step, of streamed layers."""
    gathered_bytes_per_step: int = 0
    """What comes from other GPUs to each in one optimizer step, of layers that they share."""
    summed_bytes_per_step: int = 0
    """Gradients that several GPUs add up in one optimizer step."""
    encoding_reserved_bytes: int = 0
    """What is reserved at most while images are encoded, before the language model loads; 0 where that is not done."""
    answers_at_once: int | None = None
    """Held-out rows that are answered at once at evaluations in training; None where none are."""
    communication_bytes: int = 0
    """What sums over several GPUs take of each, outside of PyTorch's allocator."""
    recorded_launches: int = 0
    """Of the largest pack, in CUDA graphs of layers; each length of packs has as many."""
    recorded_bytes: int = 0
    """What the driver keeps of recorded launches, outside of PyTorch's allocator."""
    batches: tuple[BatchSpent, ...] = ()
    """What each simulated batch takes; empty for a card whose rates nobody knows."""
    update: Spent = Spent()
    """What clipping and the optimizer take in a step."""
    time: StepTime | None = None
    """None for a card whose rates nobody knows."""

    @property
    def most_bytes(self) -> int:
        """What must fit: training, loading, and encoding before; and what lies beside each of them."""
        load = next((phase.peak_allocated_bytes for phase in self.phases if phase.name == "load"), 0)
        return max(self.peak_reserved_bytes, load, self.encoding_reserved_bytes) + self.beside_bytes

    def with_graphs(self, pack_lengths: int) -> "MemoryReport":
        """Return the report with what the driver keeps of graphs that are recorded for so many lengths of packs."""
        if not self.recorded_launches:
            return self
        kept_bytes = pack_lengths * self.recorded_launches * RECORDED_LAUNCH_BYTES
        return replace(
            self,
            recorded_bytes=kept_bytes,
            device_total_bytes=self.device_total_bytes + kept_bytes,
            breakdown=(*self.breakdown, Share("recorded CUDA graphs", kept_bytes)),
        )

    @property
    def beside_bytes(self) -> int:
        """What NCCL and recorded graphs hold, outside of PyTorch's allocator."""
        return self.communication_bytes + self.recorded_bytes

    @property
    def swaps(self) -> bool:
        """Whether main memory does not hold the run."""
        return would_swap(self.main_memory, self.main_memory_available_bytes)


def _long(seconds: float) -> str:
    """Return a long time in words."""
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.1f} min"


def would_swap(need: MainMemoryNeed, available_bytes: int | None) -> bool:
    """Return whether a run needs more of main memory than there is; False where nobody tells."""
    return available_bytes is not None and need.peak_bytes > available_bytes
