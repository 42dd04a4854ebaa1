"""What a run writes down: a line of the log, a change of itself, its report."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vlmtune.files import json_value, strict_json
from vlmtune.reading import JSON_BYTES, read_regular
from vlmtune.runs.histogram import Histogram
from vlmtune.runs.memory import Memory

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema


class NullIsNaN:
    """Lets pydantic read null, which strict JSON has in place of NaN, as NaN."""

    def __get_pydantic_core_schema__(self, source: Any, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        """Return the schema of the annotated number with null turned into NaN before it."""
        from pydantic_core.core_schema import no_info_before_validator_function

        return no_info_before_validator_function(lambda value: math.nan if value is None else value, handler(source))


@dataclass(frozen=True)
class GpuAtStep:
    """One of several GPUs at an optimizer step."""

    peak_bytes: int | None
    """Reserved at most so far; None on a CPU."""
    waited_share: float
    """Share (0 to 1) of the time since the last record that it has waited for the others: the slowest waits least."""


@dataclass(frozen=True)
class StepRecord:
    """One line of `log.jsonl`: what the run looked like at one optimizer step."""

    step: int
    total_steps: int
    epoch: float
    loss: Annotated[float, NullIsNaN()]
    learning_rate: float
    grad_norm: float | None
    tokens_per_s: float
    samples_per_s: float
    data_wait_share: float
    """Share (0 to 1) of the time since the last record that was spent waiting for data."""
    elapsed_s: float
    eta_s: float
    gpu_memory_bytes: int | None
    gpu_peak_bytes: int | None
    gpu_limit_bytes: int | None
    gpu_temperature_c: int | None
    eval_loss: float | None = None
    eval_metrics: dict[str, float] | None = None
    """Metric -> value over the held-out rows that were answered; None where none were."""
    gpu_estimate_bytes: int | None = None
    """The peak that was estimated before the run."""
    gpu_allocated_bytes: int | None = None
    """Between two steps; what is reserved is more."""
    gpu_allocated_peak_bytes: int | None = None
    """The highest so far."""
    eval_row_losses: Histogram | None = None
    """Of the mean loss of each held-out row; there where `eval_loss` is."""
    gpus: tuple[GpuAtStep, ...] | None = None
    """All that train together, the first one first; None where one trains alone."""


@dataclass(frozen=True)
class LongestRow:
    """The row with the most tokens, which decides the memory peak."""

    where: str
    tokens: int


@dataclass(frozen=True)
class Retry:
    """A change that a run made of itself because memory did not suffice."""

    words: tuple[str, ...]
    """As `--set` takes them."""
    note: str


@dataclass(frozen=True)
class Best:
    """The best evaluation of a run, whose weights are its result."""

    name: str
    """What was compared: `loss`, or the name of a metric."""
    value: float
    step: int


@dataclass(frozen=True)
class OneGpu:
    """What one of several GPUs has taken."""

    name: str
    peak_reserved_bytes: int
    peak_allocated_bytes: int
    communication_bytes: int
    """Outside of PyTorch's allocator, for the sums over all GPUs."""


@dataclass(frozen=True)
class TrainReport:
    """Everything in `report.json`."""

    experiment_name: str
    model: str
    method: str
    status: str
    """`finished`, `interrupted`, or what else ended the run."""
    steps: int
    train_loss_first: float | None
    train_loss_last: float | None
    eval_loss: float | None
    num_rows: int
    num_skipped_rows: int
    skipped: list[str]
    num_cut_rows: int
    num_cut_tokens: int
    text_tokens: int
    image_tokens: int
    trained_tokens: int
    longest_row: LongestRow | None
    trainable_parameters: int
    total_parameters: int
    seconds: float
    samples_per_s: float
    tokens_per_s: float
    data_wait_share: float
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None
    gpu: str | None
    precision: str
    versions: dict[str, str]
    notes: list[str] = field(default_factory=list)
    memory_estimated: Memory | None = None
    """None without an estimate, as on a CPU."""
    eval_metrics: dict[str, float] | None = None
    """Those of the last evaluation that had some."""
    memory_measured: Memory | None = None
    """None on a CPU, and where no step was made."""
    row_lengths: Histogram | None = None
    """Tokens of the rows to train on."""
    best: Best | None = None
    """None where the last step is the result."""
    gpus: list[OneGpu] = field(default_factory=list)
    """Where several have trained together; the numbers above are those of the first."""
    gpus_agree: bool | None = None
    """Whether all have ended with the same weights, bit for bit; None where one has trained alone."""

    def to_json(self) -> str:
        """Return the report as strict JSON text."""
        return strict_json(asdict(self), indent=2) + "\n"


def read_report(path: Path) -> dict[str, Any]:
    """Return what a report.json holds, of any version; nothing of one that is not there or damaged."""
    try:
        return dict(json_value(read_regular(path, JSON_BYTES, own=True)))
    except (FileNotFoundError, ValueError, TypeError):
        return {}


@dataclass(frozen=True)
class Outcome:
    """What is read of a `report.json`, which any version of vlmtune may have written."""

    status: str
    steps: int

    @property
    def is_finished(self) -> bool:
        """Whether the run has learned all that it was to learn."""
        return self.status == "finished"


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What one model made of a held-out row."""

    answer: str
    loss: Annotated[float, NullIsNaN()]
    """Mean cross-entropy a labelled token of the expected answer."""
    cut: bool
    """The model would have written more."""
    scores: dict[str, float]
    """Metric -> value for this row, the best over the accepted answers."""


@dataclass(frozen=True, kw_only=True)
class EvaluatedRow(Answered):
    """A held-out row and what the model made of it."""

    where: str
    """As messages name the row: `held-out.jsonl:12`."""
    images: list[str]
    """Paths relative to the run folder, or addresses; of pictures inside of the row their sizes in words."""
    question: str
    expected: list[str]
    """Every accepted answer; training learns the first."""
    before: Answered | None = None
    """What the model it is compared with made of the same row."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What one model made of all held-out rows."""

    asked: str
    """`adapter`, `model`, `checkpoint-40`, `base`; of another run its name before it: `other-run/adapter`."""
    loss: Annotated[float, NullIsNaN()]
    """Mean cross-entropy a labelled token over all rows."""
    metrics: dict[str, float]
    """Metric -> value over all rows."""
    num_cut: int
    """Answers that would have been longer."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord(Summary):
    """Everything in `evaluation.json`, the newest evaluation of a run."""

    data: str
    """Name of the file with the rows."""
    max_new_tokens: int
    """Tokens that an answer may have had."""
    before: Summary | None = None
    """Of the model it is compared with; None without `--compare`."""
    rows: list[EvaluatedRow]

    def to_json(self) -> str:
        """Return the record as strict JSON text."""
        return strict_json(asdict(self), indent=2) + "\n"
