"""Rows of a Parquet file as Python values, within bounds: a file of megabytes can unpack to any size."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vlmtune.errors import VlmtuneError
from vlmtune.units import GIB

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

UNPACKED_BYTES = GIB
"""The most that a row group may unpack to where it is packed more than `LIKELY_RATIO` times."""
LIKELY_RATIO = 100
"""Texts pack ten times, pictures not at all; what packs more often has nothing in it."""
BATCH_ROWS, BATCH_BYTES = 64, GIB // 4
"""What is held at once: embedded images make rows of megabytes."""


def rows_of(file: "pyarrow.parquet.ParquetFile", groups: Sequence[int], name: str) -> Iterator[dict]:
    """Yield the rows of some row groups; times and dates are text, which Python could not hold to the nanosecond.

    Raises:
        VlmtuneError: the file would unpack to gigabytes that are not in it.
    """
    schema = file.schema_arrow
    wanted = readable(schema)
    for group in groups:
        batch_rows = _rows_at_once(file.metadata.row_group(group), name)
        for batch in file.iter_batches(batch_size=batch_rows, row_groups=[group]):
            yield from (batch if wanted.types == schema.types else batch.cast(wanted)).to_pylist()


def readable(schema: "pyarrow.Schema") -> "pyarrow.Schema":
    """Return the columns with every time in them as text."""
    import pyarrow

    return pyarrow.schema([field.with_type(_readable(field.type)) for field in schema])


def _rows_at_once(group: "pyarrow.parquet.RowGroupMetaData", name: str) -> int:
    """Return how many rows are held at once: fewer where one value of a dictionary, in all of them, is large."""
    columns = [group.column(index) for index in range(group.num_columns)]
    unpacked_bytes = sum(column.total_uncompressed_size for column in columns)
    packed_bytes = sum(column.total_compressed_size for column in columns)
    if unpacked_bytes > UNPACKED_BYTES and unpacked_bytes > LIKELY_RATIO * packed_bytes:
        raise VlmtuneError(
            f"{name}: {packed_bytes:,} bytes of it unpack to {unpacked_bytes / GIB:.1f} GiB: a decompression bomb",
            "look at what is in it, and write it anew",
        )
    largest_bytes = max((_dictionary_bytes(column) for column in columns), default=0)
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, largest_bytes)))


def _dictionary_bytes(column: "pyarrow.parquet.ColumnChunkMetaData") -> int:
    """Return about how large the values are that rows of a column refer to by number."""
    if not column.has_dictionary_page:
        return 0
    packed_bytes = column.data_page_offset - column.dictionary_page_offset
    return packed_bytes * column.total_uncompressed_size // max(1, column.total_compressed_size)


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
