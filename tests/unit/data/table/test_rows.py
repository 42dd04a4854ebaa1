"""Rows on disk are a sequence of samples, and cost the processes that read them no memory of their own."""

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from vlmtune.data.samples import read_samples
from vlmtune.data.table import make
from vlmtune.data.table.rows import TableRows

from .conftest import read, write

pytestmark = pytest.mark.usefixtures("every_file_is_large", "in_this_process")


def test_they_are_a_sequence(data):
    rows = read(data).samples
    assert isinstance(rows, TableRows) and len(rows) == 17
    assert rows[-1] == list(rows)[16] and rows[2:5] == list(rows)[2:5]
    assert rows[0] in rows and rows.index(rows[4]) == 4
    with pytest.raises(IndexError):
        rows[17]


def test_a_process_that_is_given_them_opens_them_itself(data):
    rows = read(data).samples
    rows[0]
    message = pickle.dumps(rows)
    assert len(message) < 1000 and list(pickle.loads(message)) == list(rows)


def test_rows_that_are_left_out_are_not_among_the_batches(data):
    rows = read(data).samples
    some = rows.chosen(np.arange(len(rows)) % 3 == 1)
    assert list(some) == list(rows)[1::3]
    shapes, texts, names = (sum((list(part) for part in parts), []) for parts in zip(*some.batches(), strict=True))
    assert names == [sample.where for sample in some]
    assert texts == [[part for turn in sample.turns for part in turn.parts if isinstance(part, str)] for sample in some]
    assert shapes[-1] == "UptAtUtAt"


def test_memory_of_the_files_is_given_back_after_a_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(make, "PIECE_BYTES", 8 * 2**20)
    path = write(tmp_path / "rows.jsonl", [{"question": "q" * 2000, "answer": "a"}] * 20_000)
    rows = read_samples(path).samples
    for _ in rows.batches():
        pass
    before = kib_of("Rss")
    for row in rows:
        assert len(row.turns) == 2
    touched = kib_of("Rss")
    for _ in rows.batches():
        pass
    assert touched - before > 20_000, "looking at single rows leaves the pages in memory"
    assert kib_of("Rss") - before < 8_000


def kib_of(name: str) -> int:
    """Return a figure of this process's memory in KiB, such as `Rss` or `Private_Dirty`."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


class Watched(Dataset):
    """Rows, of which every thousandth says how much memory is the reading process's own."""

    def __init__(self, rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> int:
        self.rows[index].turns[0].text.strip()
        return kib_of("Private_Dirty") if index % 1000 == 999 else 0


def growth_kib(rows, in_memory: bool) -> int:
    """Return how much a data loader's processes grow over an epoch, once they have opened what they need."""
    rows = list(rows) if in_memory else rows
    loader = DataLoader(Watched(rows), batch_size=1000, num_workers=2, multiprocessing_context="fork")
    kib = [batch.max().item() for batch in loader]
    return max(kib[-1] - kib[5], kib[-2] - kib[4])


def test_processes_that_read_batches_do_not_grow_over_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(make, "PIECE_BYTES", 8 * 2**20)
    path = write(tmp_path / "rows.jsonl", [{"question": f"question {n}?", "answer": "a"} for n in range(30_000)])
    rows = read_samples(path).samples
    # A new process: the data loader's are copies of it, and what tests have left here would be copied as they run.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as new_process:
        in_memory, on_disk = (new_process.submit(growth_kib, rows, kept).result() for kept in (True, False))
    assert in_memory > 4_000, "rows as Python objects are copied when they are looked at"
    assert on_disk < 400
