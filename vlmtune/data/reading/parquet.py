"""Rows of a Parquet file as Python values, within bounds: a file of megabytes can unpack to any size.

What the file's end says of sizes may be anything. What counts is what each page says of its own: it is unpacked into so
much memory, and is an error where it has more in it.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from vlmtune.errors import VlmtuneError
from vlmtune.reading import open_regular
from vlmtune.units import GIB

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

UNPACKED_BYTES = GIB
"""The most that a row group may unpack to where it is packed more than `LIKELY_RATIO` times."""
LIKELY_RATIO = 100
"""Texts pack ten times, pictures not at all; what packs more often has nothing in it."""
LIST_VALUES = 2**24
"""The most values in lists of a row group where there are more than `LIKELY_RATIO` a byte: one row may have all."""
BATCH_ROWS, BATCH_BYTES = 64, GIB // 4
"""What is held at once: embedded images make rows of megabytes."""
DICTIONARY_PAGE, DELTA_BYTE_ARRAY = 2, 7
"""Numbers in parquet.thrift: a kind of page and an encoding, of which any bytes may be in every row."""
MOST_DEPTH = 4
"""Of structs in the header of a page."""


class Page(NamedTuple):
    """What a page says of itself."""

    packed_bytes: int
    unpacked_bytes: int
    num_values: int
    repeats: bool
    """Whether any of its bytes may be in every row."""


def rows_of(file: "pyarrow.parquet.ParquetFile", path: Path, groups: Sequence[int], name: str) -> Iterator[dict]:
    """Yield the rows of some row groups; times and dates are text, which Python could not hold to the nanosecond.

    Raises:
        VlmtuneError: the file would unpack to gigabytes that are not in it.
        ValueError: a page is none.
    """
    schema = file.schema_arrow
    wanted = readable(schema)
    for group in groups:
        batch_rows = _rows_at_once(file, path, group, name)
        for batch in file.iter_batches(batch_size=batch_rows, row_groups=[group]):
            yield from (batch if wanted.types == schema.types else batch.cast(wanted)).to_pylist()


def readable(schema: "pyarrow.Schema") -> "pyarrow.Schema":
    """Return the columns with every time in them as text."""
    import pyarrow

    return pyarrow.schema([field.with_type(_readable(field.type)) for field in schema])


def _rows_at_once(file: "pyarrow.parquet.ParquetFile", path: Path, group: int, name: str) -> int:
    """Return how many rows are held at once: fewer where a large value may be in all of them."""
    metadata = file.metadata.row_group(group)
    packed_bytes, unpacked_bytes, largest_bytes = 0, 0, 1
    with open_regular(path) as raw:
        for index in range(metadata.num_columns):
            in_lists = 0
            for page in _pages(raw, metadata.column(index)):
                packed_bytes += page.packed_bytes
                unpacked_bytes += page.unpacked_bytes
                largest_bytes = max(largest_bytes, page.unpacked_bytes * page.repeats)
                in_lists += page.num_values * (file.schema.column(index).max_repetition_level > 0)
            if in_lists > LIST_VALUES and in_lists > LIKELY_RATIO * packed_bytes:
                raise _bomb(name, packed_bytes, f"{in_lists:,} values in lists")
    if unpacked_bytes > UNPACKED_BYTES and unpacked_bytes > LIKELY_RATIO * packed_bytes:
        raise _bomb(name, packed_bytes, f"{unpacked_bytes / GIB:.1f} GiB")
    return max(1, min(BATCH_ROWS, BATCH_BYTES // largest_bytes))


def _bomb(name: str, packed_bytes: int, what: str) -> VlmtuneError:
    return VlmtuneError(
        f"{name}: {packed_bytes:,} bytes of it unpack to {what}: a decompression bomb",
        "look at what is in it, and write it anew",
    )


def _pages(raw: BinaryIO, column: "pyarrow.parquet.ColumnChunkMetaData") -> Iterator[Page]:
    """Yield the pages of a column, from where and up to where pyarrow reads them."""
    start = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
        start = column.dictionary_page_offset
    raw.seek(start)
    while raw.tell() < start + column.total_compressed_size:
        header = _numbers(raw)
        kind, unpacked_bytes, packed_bytes = (header.get((number,), 0) for number in (1, 2, 3))
        num_values = header.get((5, 1), 0) + header.get((8, 1), 0)  # of data pages of both versions
        if min(unpacked_bytes, packed_bytes, num_values) < 0:
            raise ValueError("a page of a negative size")
        repeats = kind == DICTIONARY_PAGE or DELTA_BYTE_ARRAY in (header.get((5, 2)), header.get((8, 4)))
        yield Page(packed_bytes, unpacked_bytes, num_values, repeats)
        raw.seek(packed_bytes, os.SEEK_CUR)


def _numbers(raw: BinaryIO, place: tuple[int, ...] = ()) -> dict[tuple[int, ...], int]:
    """Return the numbers in a struct of Thrift's compact protocol, structs inside it included, by where they stand."""
    found, last = {}, 0
    while head := _byte(raw):
        last = last + (head >> 4) if head >> 4 else _integer(raw)
        kind = head & 15
        if kind in (4, 5, 6):
            found[*place, last] = _integer(raw)
        elif kind == 8:
            raw.seek(_natural(raw), os.SEEK_CUR)
        elif kind == 12 and len(place) < MOST_DEPTH:
            found |= _numbers(raw, (*place, last))
        elif kind not in (1, 2):  # true and false, which are kinds of their own
            raise ValueError("no page of Parquet")
    return found


def _integer(raw: BinaryIO) -> int:
    number = _natural(raw)
    return (number >> 1) ^ -(number & 1)


def _natural(raw: BinaryIO) -> int:
    """Return a number in groups of 7 bits, at most 64 of them."""
    number = 0
    for shift in range(0, 70, 7):
        byte = _byte(raw)
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number
    raise ValueError("no page of Parquet")


def _byte(raw: BinaryIO) -> int:
    found = raw.read(1)
    if not found:
        raise ValueError("a page is cut")
    return found[0]


def _readable(kind: "pyarrow.DataType") -> "pyarrow.DataType":
    """Return a type with every time in it, however deep, as text."""
    import pyarrow

    if pyarrow.types.is_temporal(kind):
        return pyarrow.string()
    if pyarrow.types.is_struct(kind):
        fields = [kind.field(index) for index in range(kind.num_fields)]
        return pyarrow.struct([field.with_type(_readable(field.type)) for field in fields])
    if pyarrow.types.is_list(kind):
        return pyarrow.list_(kind.value_field.with_type(_readable(kind.value_type)))
    if pyarrow.types.is_map(kind):
        return pyarrow.map_(kind.key_type, kind.item_field.with_type(_readable(kind.item_type)))
    return kind
