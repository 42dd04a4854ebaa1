"""The run folder: the names in it, and reading and writing what is in it."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from vlmtune.errors import VlmtuneError
from vlmtune.files import PARTIAL, parse_json, strict_json, write_atomically, write_json
from vlmtune.reading import JSON_BYTES, read_regular, refuse_other_kinds
from vlmtune.runs.adapter import missing_file, no_run
from vlmtune.runs.manifest import damage, refuse_damaged
from vlmtune.runs.memory import Memory
from vlmtune.runs.records import Outcome, Retry, StepRecord
from vlmtune.units import GIB

COMPLETE = "COMPLETE"
"""File that a checkpoint gets last; a checkpoint without it was interrupted and does not count."""
NEWEST = "newest"
LOG_BYTES = GIB
"""The most that is read of a log: 4 million records."""
T = TypeVar("T")


@dataclass(frozen=True)
class Learned:
    """A folder with what a run has learned."""

    path: Path
    note: str | None = None
    """What people are told of a checkpoint; None for what a finished run has left."""


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
    def evaluation(self) -> Path:
        """The newest evaluation, row by row; for people `.html`."""
        return self.path / "evaluation.json"

    @property
    def base_evaluation(self) -> Path:
        """The same of the model as it was before the run."""
        return self.path / "evaluation-base.json"

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

    def has_begun(self) -> bool:
        """Return whether a run has begun here: its plan is the first file."""
        return self.plan.is_file()

    def is_config(self, path: Path) -> bool:
        """Return whether a config file is that of a run that has begun here."""
        return path.name == self.config.name and self.has_begun()

    @classmethod
    def create(cls, path: Path) -> "RunFolder":
        """Return a new run folder, empty but for what a kill left before anything was written; raise for more."""
        folder = cls(path)
        folder.refuse_others_files()
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
        if taken and folder.has_begun():
            way_out = "continue it with --resume, or choose another experiment_name"
            raise VlmtuneError(f"{path} already holds a run", way_out)
        if taken:
            raise VlmtuneError(
                f"{path} is not empty, and holds no run that can be continued: it has no {folder.plan.name}",
                "choose another experiment_name, or move that folder away",
            )
        return folder

    @classmethod
    def open_existing(cls, path: Path) -> "RunFolder":
        """Return the run folder at `path`; raise when there is none."""
        folder = cls(path)
        if not path.is_dir():
            raise VlmtuneError(f"there is no run folder {path}", hint="give the folder that `vlmtune train` wrote")
        folder.refuse_others_files()
        if not folder.has_begun():
            raise no_run(path)
        return folder

    def refuse_others_files(self) -> None:
        """Raise where a link, a pipe or the like is in the place of a file or folder of the run."""
        files = (self.config, self.plan, self.versions, self.estimate, self.retries, self.log, self.lock, self.holder)
        results = (self.report_json, self.evaluation, self.base_evaluation)
        refuse_other_kinds(
            files=(*files, *results, *(result.with_suffix(".html") for result in results)),
            folders=(self.adapter, self.model, self.checkpoints, self.tensorboard),
        )

    def refuse_removed(self) -> None:
        """Raise where the folder of a run that goes on is no more: its plan was in it from the start."""
        if not self.plan.exists():
            raise VlmtuneError(
                f"{self.path} was removed while the run went on: what it has learned since its last checkpoint is lost",
                "train again; a folder that was moved goes on with --resume once it is back in its place",
            )

    def latest_checkpoint(self) -> Path | None:
        """Return the complete checkpoint with the highest step, or None."""
        return steps[max(steps)] if (steps := self._complete_checkpoints()) else None

    def _complete_checkpoints(self) -> dict[int, Path]:
        return {
            int(found.group(1)): marker.parent
            for marker in self.checkpoints.glob(f"checkpoint-*/{COMPLETE}")
            if not marker.parent.is_symlink() and (found := re.fullmatch(r"checkpoint-(\d+)", marker.parent.name))
        }

    def learned(self, checkpoint: str | None = None) -> Learned:
        """Return what the finished run has left; else, or where one is asked for, a checkpoint.

        `checkpoint` is a step, `checkpoint-STEP` or `newest`.

        Raises:
            VlmtuneError: there is no such checkpoint, or none and no result.
        """
        result = next((folder for folder in (self.adapter, self.model) if folder.is_dir()), None)
        steps = self._complete_checkpoints()
        if result and checkpoint is None:
            way_out = (
                "evaluate, generate and merge take a checkpoint with --checkpoint newest" if steps else "train it again"
            )
            refuse_damaged(result, damage(result) or _missing(result), way_out)
            return Learned(result)
        if not steps:
            raise VlmtuneError(
                f"{self.path} has no checkpoint" + ("" if result else " and no adapter: nothing was learned yet"),
                "leave --checkpoint out" if result else f"continue it: vlmtune train {self.config} --resume",
            )
        step = _step_of(checkpoint or NEWEST, steps)
        total = next((f" of {record.total_steps:,} steps" for record in self.read_log()[-1:]), "")
        refuse_damaged(steps[step], damage(steps[step], COMPLETE), "--checkpoint STEP takes another")
        why = "" if checkpoint else f"{self.path} has not finished: "
        return Learned(steps[step], f"{why}{steps[step].name}{total} is used")

    def write_estimate(self, estimate: dict[str, Any] | None) -> None:
        """Keep the estimate of this run, which has the keys of `Memory` at least; None removes an earlier one."""
        if estimate is None:
            self.estimate.unlink(missing_ok=True)
        else:
            write_json(self.estimate, estimate)

    def read_estimate(self) -> Memory | None:
        """Return what the memory was estimated to be, None without an estimate."""
        return read_json(self.estimate, Memory) if self.estimate.exists() else None

    def add_retry(self, retry: Retry) -> None:
        """Note one more change that the run makes of itself."""
        write_json(self.retries, [asdict(one) for one in (*self.read_retries(), retry)])

    def read_retries(self) -> list[Retry]:
        """Return the changes that the run made of itself, oldest first."""
        return read_json(self.retries, list[Retry]) if self.retries.exists() else []

    def read_outcome(self) -> Outcome | None:
        """Return how the run ended; None before that, and where a full disk left half a report."""
        try:
            return parse_json(Outcome, read_regular(self.report_json, JSON_BYTES, own=True))
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
        lines = read_regular(self.log, LOG_BYTES, own=True).splitlines()
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


def _step_of(checkpoint: str, steps: dict[int, Path]) -> int:
    """Return the step of the checkpoint that is asked for, of those that are there."""
    if checkpoint == NEWEST:
        return max(steps)
    named = checkpoint.rstrip("/").rpartition("checkpoint-")[2]
    if not named.isdecimal() or int(named) not in steps:
        there = ", ".join(str(step) for step in sorted(steps))
        raise VlmtuneError(f"--checkpoint {checkpoint}: there is no such checkpoint", f"those are: {there}, {NEWEST}")
    return int(named)


def _missing(result: Path) -> str | None:
    """Return what a result without a manifest, of version 0.1.0, lacks."""
    absent = missing_file(result) if result.name == "adapter" else None
    return absent and f"{absent} is missing"


def read_json(path: Path, shape: type[T]) -> T:
    """Return what a JSON file holds."""
    try:
        return parse_json(shape, read_regular(path, JSON_BYTES, own=True))
    except ValueError as error:
        raise VlmtuneError(f"{path} is damaged", "delete that file") from error
