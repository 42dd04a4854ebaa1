"""Rows of a large data file as a read-only sequence of samples over Arrow files that are mapped into memory.

Nothing of a row is kept as a Python object: processes that read batches share the pages of the files and write to none.
"""

import mmap
from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import sha256
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self, overload

import numpy as np
import pyarrow as pa

from vlmtune.data.boxes.writing import BoxWriter
from vlmtune.data.images import Look
from vlmtune.data.progress import Progress, silent
from vlmtune.data.reading.data_files import DataFiles
from vlmtune.data.table.layout import Layout, assembled, laid_out
from vlmtune.data.types import Sample, SamplesOnDisk

SCHEMA = pa.schema(
    {
        "number": pa.int64(),
        "shape": pa.string(),
        "texts": pa.list_(pa.string()),
        "refs": pa.list_(pa.string()),
        "blobs": pa.list_(pa.binary()),
    }
)
ROW = np.dtype(
    [("number", np.int64), ("num_refs", np.int32), ("num_blobs", np.int32), ("has_boxes", bool), ("has_lists", bool)]
)
"""What is kept of each row beside the table: number among all files, images by name, embedded images, and whether its
texts hold boxes, or lists of four numbers.
"""
INDEX = "index.npy"
"""[rows] of `ROW`."""
REFS = "refs.arrow"
"""Every path and address once, [refs]."""
REF_OF_IMAGE = "ref_of_image.npy"
"""Place in `REFS` of each image by name, row after row."""
BLOBS = "blobs.npy"
"""What is seen of each embedded image, row after row, [images] of `BLOB`; 0 where it cannot be used."""
BLOB = np.dtype([(name, np.int32) for name in Look._fields])
BATCH_ROWS = 4096
BATCH_BYTES = 8 * 2**20
"""A batch ends with the row that reaches either."""


class PartWriter:
    """Writes layouts into one Arrow file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._arrow = pa.ipc.new_file(self._file, SCHEMA)
        self._rows: list[tuple] = []
        self._num_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if error is None:
                self._flush()
                self._arrow.close()

    def add(self, number: int, layout: Layout) -> None:
        """Write one more row."""
        self._rows.append((number, *layout))
        self._num_bytes += sum(map(len, layout.texts)) + sum(map(len, layout.blobs))
        if len(self._rows) == BATCH_ROWS or self._num_bytes >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = zip(SCHEMA, zip(*self._rows, strict=True), strict=True)
            self._arrow.write_batch(
                pa.record_batch([pa.array(values, field.type) for field, values in columns], SCHEMA)
            )
        self._rows, self._num_bytes = [], 0


class MappedBatches:
    """The record batches of an Arrow file; the system reads a page when it is touched."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with pa.ipc.open_file(pa.py_buffer(self._map)) as reader:
            self.batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]

    def release(self) -> None:
        """Give touched pages back: they are read again from the file when they are asked for."""
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)


def mapped_parts(folder: Path) -> list[MappedBatches]:
    """Return the parts of a table in their order."""
    return [MappedBatches(path) for path in sorted(folder.glob("part-*.arrow"))]


class TableRows(SamplesOnDisk):
    """Some rows of a table, in the order of their file."""

    def __init__(self, folder: Path, files: DataFiles, rows: np.ndarray, progress: Progress = silent) -> None:
        """`folder` holds the table of these data files; `rows` are places in the table, rising."""
        self.folder = folder
        self.files = files
        self.rows = rows
        self.progress = progress
        """Who is told of long work on these rows."""
        self.refs_px: np.ndarray | None = None
        """Width and height of each of the table's `REFS`, once they were looked at."""
        self.writer: BoxWriter | None = None
        """What writes the boxes of a row, once the model is known."""

    def __reduce__(self) -> tuple:
        return TableRows, (self.folder, self.files, self.rows), {"writer": self.writer}

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self._sample(row) for row in self.rows[index].tolist()]
        return self._sample(int(self.rows[index]))

    def __iter__(self) -> Iterator[Sample]:
        return (self._sample(int(row)) for row in self.rows)

    def _sample(self, row: int) -> Sample:
        sample = self._read(row)
        return self.writer(sample) if self.writer and self.facts["has_boxes"][row] else sample

    def _read(self, row: int) -> Sample:
        place_of_batch = int(np.searchsorted(self._starts, row, side="right")) - 1
        batch, inside = self._batches[place_of_batch], row - int(self._starts[place_of_batch])
        number, *layout = (column[inside].as_py() for column in batch.columns)
        return assembled(Layout(*layout), self.files.place(number), number)

    def chosen(self, mask: np.ndarray) -> "TableRows":
        """Return those of these rows for which the mask is true."""
        chosen = TableRows(self.folder, self.files, self.rows[mask], self.progress)
        chosen.refs_px, chosen.writer = self.refs_px, self.writer
        return chosen

    @property
    def num_with_boxes(self) -> int:
        """Those of these rows whose texts hold boxes that are still to be written."""
        return 0 if self.writer else int(np.count_nonzero(self.facts["has_boxes"][self.rows]))

    def with_lists(self) -> "TableRows":
        """Return those of these rows with lists of four numbers in their texts."""
        return self.chosen(self.facts["has_lists"][self.rows])

    def written(self, writer: BoxWriter) -> "TableRows":
        """Return these rows as `writer` gives them."""
        written = self.chosen(np.ones(len(self.rows), bool))
        written.writer = writer
        return written

    @cached_property
    def facts(self) -> np.ndarray:
        """What is kept of each row of the whole table, [rows] of `ROW`."""
        return np.load(self.folder / INDEX, mmap_mode="r")

    @property
    def numbers(self) -> list[int]:
        """The number of each of these rows among all files."""
        return self.facts["number"][self.rows].tolist()

    def at(self, places: Sequence[int]) -> "TableRows":
        """Return the rows at some places of these, rising."""
        mask = np.zeros(len(self.rows), bool)
        mask[places] = True
        return self.chosen(mask)

    def images(self) -> Iterator[list[str | bytes]]:
        """Yield what tells the images of each row from others: paths, addresses, digests of embedded ones."""
        for batch, first in zip(self._batches, self._starts, strict=True):
            refs, blobs = batch["refs"], batch["blobs"]
            for row in self._inside(batch, int(first)).tolist():
                yield [*refs[row].as_py(), *(sha256(blob).digest() for blob in blobs[row].as_py())]

    @property
    def num_images(self) -> int:
        """Images of all these rows."""
        return int((self.facts["num_refs"] + self.facts["num_blobs"])[self.rows].sum())

    @property
    def blobs(self) -> np.ndarray:
        """What is seen of each embedded image of the whole table, [images] of `BLOB`."""
        return np.load(self.folder / BLOBS, mmap_mode="r")

    def image_sizes_px(self, refs_px: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how many images each row has, [rows], and each image's width and height, row after row, [images, 2].

        `refs_px` are those of each of the table's `REFS`.
        """
        places = np.arange(len(self.facts), dtype=np.int32)
        row_of_image = np.concatenate([np.repeat(places, self.facts[images]) for images in ("num_refs", "num_blobs")])
        is_chosen = np.zeros(len(self.facts), bool)
        is_chosen[self.rows] = True
        images = np.flatnonzero(is_chosen[row_of_image])
        images = images[np.argsort(row_of_image[images], kind="stable")]
        blobs_px = np.stack([self.blobs["width_px"], self.blobs["height_px"]], axis=1)
        sizes_px = np.concatenate([refs_px[np.load(self.folder / REF_OF_IMAGE)], blobs_px])
        return (self.facts["num_refs"] + self.facts["num_blobs"])[self.rows], sizes_px[images]

    def batches(self) -> Iterator[tuple[list[str], list[list[str]], list[str]]]:
        """Yield shapes, texts and names of the rows, some thousand at once; memory of finished files is given back."""
        first, num_yielded = 0, 0
        for part in self._parts:
            for batch in part.batches:
                inside = self._inside(batch, first)
                before, first = first, first + batch.num_rows
                if len(inside):
                    some = batch if len(inside) == batch.num_rows else batch.take(pa.array(inside))
                    names = [self.files.place(number) for number in some["number"].to_pylist()]
                    texts = some["texts"].to_pylist()
                    self._write_boxes(texts, inside + before, num_yielded)
                    num_yielded += len(inside)
                    yield some["shape"].to_pylist(), texts, names
            part.release()

    def _inside(self, batch: pa.RecordBatch, first: int) -> np.ndarray:
        """Return which rows of a batch, whose first row is `first` of the table, are among these."""
        return self.rows[slice(*np.searchsorted(self.rows, (first, first + batch.num_rows)))] - first

    def _write_boxes(self, texts: list[list[str]], rows: np.ndarray, start: int) -> None:
        """Replace the texts of those of these rows that hold boxes; `start` is the first one's place among all."""
        if self.writer is None:
            return
        for index in np.flatnonzero(self.facts["has_boxes"][rows]).tolist():
            sample = self._read(int(rows[index]))
            sizes_px = self._sizes_px[start + index] if self.refs_px is not None else None
            texts[index] = list(laid_out(self.writer(sample, sizes_px)).texts)

    @cached_property
    def _sizes_px(self) -> list[list[tuple[int, int]]]:
        """Width and height of the pictures of each of these rows, which were looked at."""
        num_images, sizes_px = self.image_sizes_px(self.refs_px)
        sizes = iter(map(tuple, sizes_px.tolist()))
        return [list(islice(sizes, number)) for number in num_images.tolist()]

    @cached_property
    def _parts(self) -> list[MappedBatches]:
        return mapped_parts(self.folder)

    @cached_property
    def _batches(self) -> list[pa.RecordBatch]:
        return [batch for part in self._parts for batch in part.batches]

    @cached_property
    def _starts(self) -> np.ndarray:
        """The first row of each batch."""
        return np.cumsum([0, *(batch.num_rows for batch in self._batches[:-1])])
