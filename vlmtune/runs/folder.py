"""What a run leaves behind: the names in the run folder, the lines of `log.jsonl` and the final report.

The lowest layer above `errors`: trainer, live view and commands share these shapes and import them from here.
"""

import json
import math
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from vlmtune.errors import VlmtuneError
from vlmtune.runs.memory import Memory

COMPLETE = "COMPLETE"
"""File that a checkpoint gets last; a checkpoint without it was interrupted and does not count."""

LIBRARIES = ("torch", "torchvision", "transformers", "peft", "bitsandbytes", "accelerate")


@dataclass(frozen=True)
class StepRecord:
    """One line of `log.jsonl`: what the run looked like at one optimizer step."""

    step: int
    total_steps: int
    epoch: float
    loss: float
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
    gpu_estimate_bytes: int | None = None
    """The peak that was estimated before the run."""


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
    memory_measured: Memory | None = None
    """None on a CPU, and where no step was made."""

    def to_json(self) -> str:
        """Return the report as strict JSON text."""
        return strict_json(asdict(self), indent=2) + "\n"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run; the only place that names the files in it."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def plan(self) -> Path:
        """The plan, every value decided."""
        return self.path / "plan.json"

    @property
    def versions(self) -> Path:
        """The library versions."""
        return self.path / "versions.json"

    @property
    def estimate(self) -> Path:
        """What the memory was estimated to be; there on a GPU only."""
        return self.path / "estimate.json"

    @property
    def retries(self) -> Path:
        """The changes that the run made of itself; there after the first one only."""
        return self.path / "retries.json"

    @property
    def log(self) -> Path:
        """One line per StepRecord."""
        return self.path / "log.jsonl"

    @property
    def adapter(self) -> Path:
        """The adapter in PEFT's format (methods qlora and lora)."""
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        """The whole model (method full)."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """Parent of the `checkpoint-N` folders."""
        return self.path / "checkpoints"

    @property
    def report_json(self) -> Path:
        """The report for programs."""
        return self.path / "report.json"

    @property
    def report_html(self) -> Path:
        """The report for people."""
        return self.path / "report.html"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files, when asked for."""
        return self.path / "tensorboard"

    @classmethod
    def create(cls, path: Path) -> "RunFolder":
        """Return a new, empty run folder; raise when something is already there."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            taken = any(path.iterdir())
        except FileExistsError:
            raise VlmtuneError(f"{path} is a file, not a folder", hint="choose another experiment_name") from None
        except OSError as error:
            raise VlmtuneError(
                f"cannot create the run folder {path}: {error.strerror}", hint="choose another output_dir"
            ) from None
        if taken:
            raise VlmtuneError(
                f"{path} already holds a run", hint="continue it with --resume, or choose another experiment_name"
            )
        return cls(path)

    @classmethod
    def open_existing(cls, path: Path) -> "RunFolder":
        """Return the run folder at `path`; raise when there is none."""
        folder = cls(path)
        if not path.is_dir():
            raise VlmtuneError(f"there is no run folder {path}", hint="give the folder that `vlmtune train` wrote")
        if not folder.plan.is_file():
            raise VlmtuneError(
                f"{path} is not a run folder: it has no {folder.plan.name}",
                hint="give the folder that `vlmtune train` wrote, not one inside or above it",
            )
        return folder

    def latest_checkpoint(self) -> Path | None:
        """Return the complete checkpoint with the highest step, or None."""
        steps = {
            int(found.group(1)): marker.parent
            for marker in self.checkpoints.glob(f"checkpoint-*/{COMPLETE}")
            if (found := re.fullmatch(r"checkpoint-(\d+)", marker.parent.name))
        }
        return steps[max(steps)] if steps else None

    def write_estimate(self, estimate: dict[str, Any] | None) -> None:
        """Keep the estimate of this run, which has the keys of `Memory` at least; None removes an earlier one."""
        if estimate is None:
            self.estimate.unlink(missing_ok=True)
        else:
            self.estimate.write_text(strict_json(estimate, indent=2) + "\n", encoding="utf-8")

    def read_estimate(self) -> Memory | None:
        """Return what the memory was estimated to be, None without an estimate."""
        if not self.estimate.exists():
            return None
        values = json.loads(self.estimate.read_text(encoding="utf-8"))
        return Memory(**{item.name: values[item.name] for item in fields(Memory)})

    def add_retry(self, retry: Retry) -> None:
        """Note one more change that the run makes of itself."""
        retries = [asdict(one) for one in (*self.read_retries(), retry)]
        self.retries.write_text(strict_json(retries, indent=2) + "\n", encoding="utf-8")

    def read_retries(self) -> list[Retry]:
        """Return the changes that the run made of itself, oldest first."""
        if not self.retries.exists():
            return []
        kept = json.loads(self.retries.read_text(encoding="utf-8"))
        return [Retry(tuple(one["words"]), one["note"]) for one in kept]

    def append_log(self, record: StepRecord) -> None:
        """Add one line to the log, handed to the system when this returns, so that a kill cannot lose it."""
        with self.log.open("a", encoding="utf-8") as file:
            file.write(strict_json(asdict(record)) + "\n")

    def read_log(self) -> list[StepRecord]:
        """Return the records of the log, without a last line that a kill has cut."""
        if not self.log.exists():
            return []
        lines = self.log.read_bytes().splitlines(keepends=True)
        records = []
        for number, line in enumerate(lines, start=1):
            try:
                records.append(_record(json.loads(line)))
            except (ValueError, TypeError) as error:
                if number == len(lines):
                    break
                raise VlmtuneError(f"{self.log}:{number} is not a log record", hint="delete that line") from error
        return records

    def truncate_log(self, step: int) -> None:
        """Drop the records after `step`, and a cut last line, so that a resumed run can append."""
        kept = "".join(strict_json(asdict(record)) + "\n" for record in self.read_log() if record.step <= step)
        partial = self.log.with_suffix(".partial")
        partial.write_text(kept, encoding="utf-8")
        partial.replace(self.log)


def strict_json(value: Any, indent: int | None = None) -> str:
    """Return `value` as JSON text; NaN and infinities, which JSON does not have, become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False, ensure_ascii=False)


def library_versions() -> dict[str, str]:
    """Return the versions of Python, vlmtune and its libraries, read from package metadata without importing them."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from vlmtune import __version__

    versions = {"python": platform.python_version(), "vlmtune": __version__}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = "not installed"
    return versions


def write_report(folder: RunFolder, report: TrainReport, records: list[StepRecord]) -> None:
    """Write `report.json` and the one-page `report.html`."""
    from vlmtune.runs.page import render_page

    folder.report_html.write_text(render_page(report, records), encoding="utf-8")
    # Last, because a run with a report.json counts as finished.
    folder.report_json.write_text(report.to_json(), encoding="utf-8")


def _record(values: dict[str, Any]) -> StepRecord:
    """Return the record of one parsed line; a null loss was NaN."""
    known = {item.name for item in fields(StepRecord)}
    record = {key: value for key, value in values.items() if key in known}
    if record.get("loss", 0.0) is None:
        record["loss"] = math.nan
    return StepRecord(**record)


def _finite(value: Any) -> Any:
    """Return `value` with every non-finite float in it replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
