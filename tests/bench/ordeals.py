"""Runs of a tiny model that are disturbed and then go on: what `make kills` and `make full-disk` share.

Each run is a process of its own, forked from this one, which has imported everything: a start takes a second, not ten.
"""

import json
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "NO_COLOR": "1", "COLUMNS": "120"}
HANGS_AFTER_S = 120
VALUES = {
    "num_epochs": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 0.01,
    "save_steps": 2,
    "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
}
EVALUATED = ("data.val_path=rows.jsonl", "training.eval_steps=3")
KINDS: dict[str, tuple[str, ...]] = {
    "qlora": (),
    "lora": ("training.method=lora",),
    "full": ("training.method=full",),
    "two data workers": ("hardware.num_workers=2",),
    "evaluation": EVALUATED,
    "cached features": ("data.cache_features=true", *EVALUATED),
    "checkpoints by minutes": ("training.save_steps=1000", "training.save_minutes=0.004"),
}
"""Runs of every kind: their `--set` words."""


@dataclass(frozen=True)
class Ended:
    """How a process of a run ended."""

    code: int
    """Negative: the signal that ended it."""
    output: str
    seconds: float

    @property
    def has_traceback(self) -> bool:
        """Whether a bug came out of it."""
        return "Traceback" in self.output or "Exception ignored" in self.output


@dataclass(frozen=True)
class Run:
    """One run of a kind, in a project's folder."""

    root: Path
    name: str
    kind: str

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.root / "runs" / self.name

    def begin(self) -> int:
        """Begin it, or go on with it, in a process of its own; return that process."""
        if process := os.fork():
            return process
        try:
            self._train()
        except KeyboardInterrupt:
            os._exit(130)  # before the command began

    def _train(self) -> None:
        from vlmtune.cli import main

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a shell may have turned them off
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.chdir(self.root)
        os.environ["XDG_CACHE_HOME"] = str(self.root / "caches" / self.name)
        words = [word for one in (f"experiment_name={self.name}", *KINDS[self.kind]) for word in ("--set", one)]
        output = os.open(self.root / f"{self.name}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1), os.dup2(output, 2)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
        try:
            main(["train", "run.yaml", "--resume", "auto", *words])
        except SystemExit as ended:
            os._exit(int(ended.code or 0))
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(99)

    def wait(self, process: int, seconds: float = HANGS_AFTER_S) -> Ended | None:
        """Return how the process has ended; None where it still runs after so many seconds."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                output = (self.root / f"{self.name}.txt").read_text(errors="replace")
                return Ended(os.waitstatus_to_exitcode(status), output, time.monotonic() - began)
            time.sleep(0.005)
        return None

    def finish(self) -> Ended:
        """Go on with it until it ends by itself; a process that hangs is ended, and its code is that of SIGKILL."""
        process = self.begin()
        ended = self.wait(process)
        if ended is None:
            os.kill(process, signal.SIGKILL)
            ended = self.wait(process)
        return ended

    def result(self) -> tuple:
        """Return what it has learned, file by file, and its log without times."""
        from safetensors.torch import load_file

        weights = {
            f"{file.parent.name}/{name}": tensor.numpy().tobytes()
            for file in sorted(self.folder.glob("[am]*/*.safetensors"))
            for name, tensor in load_file(file).items()
        }
        lines = [json.loads(line) for line in (self.folder / "log.jsonl").read_text().splitlines()]
        return weights, [[line[key] for key in ("step", "loss", "learning_rate", "eval_loss")] for line in lines]

    def remove(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.root / "caches" / self.name, ignore_errors=True)


def make_project(root: Path) -> None:
    """Write model, rows and config, and import all that a run imports."""
    import yaml
    from tiny import save_tiny
    from tiny.rows import colour_rows

    import vlmtune.engine.train
    import vlmtune.workflow.train  # noqa: F401

    save_tiny("llava", root / "model")
    rows = [
        {"image": Path(row.images[0].path).name, "question": row.turns[0].text, "answer": row.answer}
        for row in colour_rows(root, 7)
    ]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"model": {"name": "model"}, "data": {"train_path": "rows.jsonl"}, "training": VALUES}
    (root / "run.yaml").write_text(yaml.safe_dump(values))
