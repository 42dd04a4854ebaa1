"""Rows of the Arrow files that `datasets` keeps a data set in, as Python values."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vlmtune.data.reading.parquet import BATCH_ROWS, readable
from vlmtune.errors import VlmtuneError
from vlmtune.reading import check_regular

if TYPE_CHECKING:
    import pyarrow


def rows_of_batches(path: Path, name: str) -> list[int]:
    """Return how many rows each record batch of a file has."""
    with _batches(path, name) as reader:
        return [batch.num_rows for batch in reader]


def arrow_columns(path: Path, name: str) -> list[str]:
    """Return the names of a file's columns."""
    with _batches(path, name) as reader:
        return reader.schema.names


def arrow_rows(path: Path, name: str, start: int, end: int | None) -> tuple[Mapping[bytes, bytes], Iterator[dict]]:
    """Return the metadata of a file's columns, and the rows of some record batches."""
    with _batches(path, name) as reader:
        metadata = reader.schema.metadata or {}
    return metadata, _rows(path, name, start, end)


def _rows(path: Path, name: str, start: int, end: int | None) -> Iterator[dict]:
    with _batches(path, name) as reader:
        wanted = readable(reader.schema)
        for index, batch in enumerate(reader):
            if index < start or (end is not None and index >= end):
                continue
            batch.validate(full=True)
            for first in range(0, batch.num_rows, BATCH_ROWS):
                some = batch.slice(first, BATCH_ROWS)
                yield from (some if wanted.types == reader.schema.types else some.cast(wanted)).to_pylist()


@contextmanager
def _batches(path: Path, name: str) -> "Iterator[pyarrow.RecordBatchStreamReader]":
    """The record batches of a file, mapped into memory; what is wrong with it is a `VlmtuneError`, in the body too."""
    import pyarrow

    try:
        check_regular(path)
        with pyarrow.memory_map(str(path)) as mapped, pyarrow.ipc.open_stream(mapped) as reader:
            yield reader
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise VlmtuneError(f"{name}: the rows of {path} cannot be read: {error}", "make the data set anew") from None
