"""Time and memory of the first and the second start with many rows: `make bench`, or this script with a number of rows.

Every row has a question, an answer of 35 words or so, and a picture of its own; every fourth has two of both. Pictures
are names of a few files (hard links), so that all are in the page cache. The tokenizer is a tiny model's: a token a
letter, four times as many as a large one makes.
"""

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

DEFAULT_ROWS = 100_000
WORDS = (
    "the a picture shows two people walking along street with red car parked near building while dog runs behind tree "
    "under blue sky and small table holds cup of coffee next to open book"
).split()
SIZES_PX = ((640, 480), (480, 640), (1024, 768), (336, 336), (800, 600))
LINKS_OF_A_FILE = 30_000
"""File systems allow 65,000 or so."""
LINKS_IN_A_FOLDER = 10_000
CPU_LIMIT_S = {"first": 240, "second": 10}
"""For a million rows: 120 and 5 seconds on two cores, libraries and model apart."""


def write_rows(folder: Path, num_rows: int) -> Path:
    """Write a data file of so many rows and its pictures."""
    rng = random.Random(0)
    pictures = [_picture(folder, number) for number in range(max(20, num_rows // LINKS_OF_A_FILE + 1))]
    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            picture = pictures[number % len(pictures)]
            link = folder / str(number // LINKS_IN_A_FOLDER) / f"{number}{picture.suffix}"
            if number % LINKS_IN_A_FOLDER == 0:
                link.parent.mkdir()
            os.link(picture, link)
            turns = [turn for rest in range(1 + (number % 4 == 0)) for turn in _turns(rng, is_first=rest == 0)]
            file.write(json.dumps({"image": str(link.relative_to(folder)), "conversations": turns}) + "\n")
    return path


def _picture(folder: Path, number: int) -> Path:
    """Write one picture: most are photos (JPEG), some drawings (PNG)."""
    is_photo = number % 10 > 0
    path = folder / f"picture-{number}.{'jpg' if is_photo else 'png'}"
    Image.effect_noise(SIZES_PX[number % len(SIZES_PX)] if is_photo else (96, 96), 40).save(path)
    return path


def _turns(rng: random.Random, *, is_first: bool) -> list[dict]:
    question, answer = (" ".join(rng.choices(WORDS, k=rng.randint(*words))) for words in ((6, 20), (10, 60)))
    return [{"from": "human", "value": "<image>\n" * is_first + question}, {"from": "gpt", "value": answer}]


class Clock:
    """What each phase of a start took."""

    def __init__(self) -> None:
        self.phases: list[dict] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure what happens inside: seconds, CPU seconds of all processes, and the memory at the end."""
        before_s, before_cpu_s = time.perf_counter(), _cpu_s()
        yield
        wall_s, cpu_s = time.perf_counter() - before_s, _cpu_s() - before_cpu_s
        memory = {"mib": _mib("VmRSS"), "peak_mib": _mib("VmHWM")}
        self.phases.append({"name": name, "wall_s": wall_s, "cpu_s": cpu_s} | memory)


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _mib(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) // 1024


def start(path: Path) -> list[dict]:
    """Do with rows what `train` does before the model loads, and read them all once as an epoch does."""
    from vlmtune.data.checked import with_images_checked
    from vlmtune.data.samples import read_samples
    from vlmtune.engine.runtime import prepare_environment

    clock = Clock()
    with clock.phase("rows read"):
        rows = read_samples(path)
    with clock.phase("pictures looked at"):
        rows = with_images_checked(rows)
    prepare_environment()
    with clock.phase("libraries, tiny model"):
        from tiny.rows import TinyModel

        from vlmtune.data.run_data import MeasuredRows

        tiny = TinyModel("qwen2_vl", path.parent)
    with clock.phase("rows measured"):
        lengths = MeasuredRows(rows.samples).lengths(tiny.processor, tiny.family, tiny.plan, tiny.source)
    assert len(lengths) == len(rows.samples) > 0 and lengths.image.all()
    with clock.phase("epoch, two processes"):
        growth_mib = epoch_growth_mib(rows.samples)
    return [*clock.phases, {"growth_mib": growth_mib}]


def epoch_growth_mib(samples) -> float:
    """Return by how much the memory of a data loader's processes that is their own grows over an epoch."""
    from torch.utils.data import DataLoader

    kib = list(DataLoader(_Watched(samples), batch_size=1000, num_workers=2, collate_fn=max))
    quarter = len(kib) // 4
    return (max(kib) - max(kib[:quarter])) / 1024


class _Watched:
    """Rows as a data set; every thousandth says how much memory is the reading process's own."""

    def __init__(self, samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> int:
        assert self.samples[index].turns
        if index % 1000:
            return 0
        rollup = Path("/proc/self/smaps_rollup").read_text()
        return int(rollup.partition("Private_Dirty:")[2].split()[0])


def main() -> int:
    """Print the table; return 1 if a start took more than its CPU seconds."""
    num_rows = int(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_ROWS
    table, is_slow = Table("start", "", "s", "CPU s", "resident MiB", "peak MiB"), False
    with tempfile.TemporaryDirectory() as folder:
        path = write_rows(Path(folder), num_rows)
        for which, limit_s in CPU_LIMIT_S.items():
            environment = {**os.environ, "XDG_CACHE_HOME": str(Path(folder) / "cache"), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, __file__, "--start", str(path)]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
            *phases, epoch = json.loads(done.stdout.splitlines()[-1])
            for phase in phases:
                figures = (f"{phase['wall_s']:.1f}", f"{phase['cpu_s']:.1f}", f"{phase['mib']}", f"{phase['peak_mib']}")
                table.add_row(which, phase["name"], *figures)
            own = [phase for phase in phases if phase["name"].startswith(("rows", "pictures"))]
            wall_s, cpu_s = (sum(phase[kind] for phase in own) for kind in ("wall_s", "cpu_s"))
            table.add_row(which, "rows and pictures", f"{wall_s:.1f}", f"{cpu_s:.1f}", "", "", end_section=True)
            is_slow |= cpu_s > limit_s * num_rows / 1e6 + 5
    console = Console()
    console.print(table)
    grown = f"over three quarters of an epoch its processes grew by {epoch['growth_mib']:.1f} MiB"
    console.print(
        f"{num_rows:,} rows; {grown}; Python {sys.version.split()[0]}, {os.cpu_count()} cores", soft_wrap=True
    )
    return int(is_slow)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--start"]:
        print(json.dumps(start(Path(sys.argv[2]))))
    else:
        sys.exit(main())
