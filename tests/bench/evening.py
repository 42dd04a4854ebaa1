"""The first evening on the demo's model: `make evening`, or this script with numbers of rows.

A user's first config names a model and rows, and perhaps a preset. What is each of these told, how many steps does it
get, and what has the model learned afterwards? The table goes into docs/evening.md.
"""

import json
import platform
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from io import StringIO
from itertools import islice
from pathlib import Path

import yaml

import vlmtune
from vlmtune.cli import main
from vlmtune.config.load import preset_config
from vlmtune.config.presets import names
from vlmtune.config.schema import HardwareSection, TrainingSection
from vlmtune.demo.digits import QUESTIONS, write_digits
from vlmtune.runs.folder import RunFolder

PAGE = Path(__file__).parents[2] / "docs" / "evening.md"
MARKS = ("<!-- measured: start -->", "<!-- measured: end -->")
MODEL = Path(vlmtune.__file__).parent / "demo" / "model"
ROWS = (30, 64, 500, 5000)
EVALUATED = 100
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")
NO_PRESET = "none"


@dataclass(frozen=True)
class Evening:
    """One run and what became of it."""

    num_rows: int
    preset: str
    told: str
    steps: int
    first_rate: float
    peak_rate: float
    first_loss: float
    last_loss: float
    exact: float
    seconds: float

    @property
    def cells(self) -> tuple[str, ...]:
        """Its row of the table."""
        rates = f"{self.first_rate:.1e}, {self.peak_rate:.1e}"
        losses = f"{self.first_loss:.2f} → {self.last_loss:.2f}"
        return (
            f"{self.num_rows:,}",
            self.preset,
            self.told,
            rates,
            losses,
            f"{self.exact:.0%}",
            f"{self.seconds:.0f} s",
        )


def vlmtune_says(*words: object) -> str:
    """Run a command and return what it prints; any end but a good one ends the script."""
    out, err = StringIO(), StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main([str(word) for word in words])
    except SystemExit as done:
        if done.code:
            sys.exit(f"vlmtune {' '.join(map(str, words))}: {err.getvalue()}")
    return out.getvalue()


def write_rows(folder: Path) -> None:
    """Write the demo's rows: for each size a file, the larger ones with every question about a picture."""
    write_digits(folder)
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    asked = (
        row | {"question": QUESTIONS[(QUESTIONS.index(row["question"]) + turn) % len(QUESTIONS)]}
        for turn in range(len(QUESTIONS))
        for row in rows
    )
    many = list(islice(asked, max(ROWS)))
    for number in ROWS:
        text = "".join(json.dumps(row) + "\n" for row in many[:number])
        (folder / f"{number}.jsonl").write_text(text, encoding="utf-8")
    held_out = (folder / "heldout.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "held-out.jsonl").write_text("".join(held_out[:EVALUATED]), encoding="utf-8")


def exact_match(run: Path, data: Path, *flags: str) -> float:
    """Return the share of held-out rows that a run answers exactly."""
    return json.loads(vlmtune_says("evaluate", run, "--data", data / "held-out.jsonl", "--json", *flags))["exact_match"]


def different_presets() -> list[tuple[str, ...]]:
    """Return the presets, and none, together where they train this model alike.

    Its pictures and texts are small: how large they may be makes no difference.
    """
    alike: dict[str, list[str]] = {}
    for preset in (NO_PRESET, *names()):
        if preset == NO_PRESET:
            training, hardware = TrainingSection(), HardwareSection()
        else:
            config = preset_config("model", preset).config
            training, hardware = config.training, config.hardware
        alike.setdefault(f"{training!r} {hardware!r}", []).append(preset)
    return [tuple(some) for some in alike.values()]


def evening(folder: Path, data: Path, num_rows: int, presets: tuple[str, ...]) -> Evening:
    """Train with what a first config holds and return what became of it."""
    preset = presets[0]
    name = f"{num_rows}-{preset}"
    config: dict = {"experiment_name": name, "output_dir": str(folder / "runs")}
    config |= {"model": {"name": str(MODEL)}, "data": {"train_path": str(data / f"{num_rows}.jsonl")}}
    if preset != NO_PRESET:
        config["preset"] = preset
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    started = time.perf_counter()
    lines = vlmtune_says("train", path).splitlines()
    seconds = time.perf_counter() - started
    told = " ".join(line for line in lines if " of " in line and " steps" in line or line.startswith("warning"))
    run = RunFolder(folder / "runs" / name)
    log = run.read_log()
    rates, losses = [record.learning_rate for record in log], [record.loss for record in log]
    exact = exact_match(run.path, data)
    return Evening(
        num_rows, ", ".join(presets), told, len(log), rates[0], max(rates), losses[0], losses[-1], exact, seconds
    )


def page_of(evenings: list[Evening], before: float) -> str:
    """Return the part of the page that was measured."""
    libraries = ", ".join(f"{library} {version(library)}" for library in LIBRARIES)
    head = (
        "rows",
        "preset",
        "what is said before the run",
        "learning rate, first step and peak",
        "loss",
        "exact",
        "time",
    )
    table = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    table += [f"| {' | '.join(one.cells)} |" for one in evenings]
    said = (
        f"Exact answers to {EVALUATED} held-out rows; before training {before:.0%}. On a CPU (two cores, shared), "
        f"Python {platform.python_version()}, {libraries}; {time.strftime('%Y-%m-%d')}."
    )
    return "\n\n".join([said, "\n".join(table)])


def measure(sizes: tuple[int, ...]) -> None:
    """Train every preset with every number of rows and write the page's part after each number."""
    evenings: list[Evening] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data"
        write_rows(data)
        for num_rows in sizes:
            for presets in different_presets():
                evenings.append(evening(folder, data, num_rows, presets))
                print(" | ".join(evenings[-1].cells), file=sys.stderr, flush=True)
            before = exact_match(folder / "runs" / f"{sizes[0]}-{NO_PRESET}", data, "--base")
            write_page(page_of(evenings, before))


def write_page(measured: str) -> None:
    """Replace what was measured before."""
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(MARKS[0])
    PAGE.write_text(f"{head}{MARKS[0]}\n{measured}\n{MARKS[1]}{rest.split(MARKS[1])[1]}", encoding="utf-8")


if __name__ == "__main__":
    measure(tuple(map(int, sys.argv[1:])) or ROWS)
