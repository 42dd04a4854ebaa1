"""The run folder: the names in it, and reading and writing what is in it."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from vlmtune.errors import VlmtuneError
from vlmtune.files import PARTIAL, parse_json, strict_json, write_atomically, write_json
from vlmtune.runs.memory import Memory
from vlmtune.runs.records import Outcome, Retry, StepRecord

COMPLETE = "COMPLETE"
"""File that a checkpoint gets last; a checkpoint without it was interrupted and does not count."""
T = TypeVar("T")


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

    @property
    def lock(self) -> Path:
        """Locked by the process that trains here; a kill leaves it, without the lock."""
        return self.path / "train.lock"

    @property
    def holder(self) -> Path:
        """Which process that is; there while it runs, and after a kill."""
        return self.path / "running.json"

    @classmethod
    def create(cls, path: Path) -> "RunFolder":
        """Return a new run folder, empty but for what a kill left before anything was written; raise for more."""
        folder = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            taken = any(
                inside not in (folder.lock, folder.holder) and not inside.name.endswith(PARTIAL)
                for inside in path.iterdir()
            )
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
        return folder

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
            write_json(self.estimate, estimate)

    def read_estimate(self) -> Memory | None:
        """Return what the memory was estimated to be, None without an estimate."""
        return _read(self.estimate, Memory) if self.estimate.exists() else None

    def add_retry(self, retry: Retry) -> None:
        """Note one more change that the run makes of itself."""
        write_json(self.retries, [asdict(one) for one in (*self.read_retries(), retry)])

    def read_retries(self) -> list[Retry]:
        """Return the changes that the run made of itself, oldest first."""
        return _read(self.retries, list[Retry]) if self.retries.exists() else []

    def read_outcome(self) -> Outcome | None:
        """Return how the run ended; None before that, and where a full disk left half a report."""
        try:
            return parse_json(Outcome, self.report_json.read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def append_log(self, record: StepRecord) -> None:
        """Add one line to the log, handed to the system when this returns, so that a kill cannot lose it."""
        with self.log.open("a", encoding="utf-8", newline="\n") as file:
            file.write(strict_json(asdict(record)) + "\n")

    def read_log(self) -> list[StepRecord]:
        """Return the records of the log, without a last line that a kill has cut."""
        if not self.log.exists():
            return []
        lines = self.log.read_bytes().splitlines()
        records = []
        for number, line in enumerate(lines, start=1):
            try:
                records.append(parse_json(StepRecord, line))
            except ValueError as error:
                if number == len(lines):
                    break
                raise VlmtuneError(f"{self.log}:{number} is not a log record", hint="delete that line") from error
        return records

    def truncate_log(self, step: int) -> None:
        """Drop the records after `step`, and a cut last line, so that a resumed run can append."""
        kept = [strict_json(asdict(record)) + "\n" for record in self.read_log() if record.step <= step]
        write_atomically(self.log, "".join(kept))


def _read(path: Path, shape: type[T]) -> T:
    """Return what a JSON file holds."""
    try:
        return parse_json(shape, path.read_bytes())
    except ValueError as error:
        raise VlmtuneError(f"{path} is damaged", "delete that file") from error
