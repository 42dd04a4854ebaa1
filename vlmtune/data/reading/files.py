"""JSONL, JSON, Parquet and Arrow files -> rows with their numbers, whole or piece by piece.

One broken JSONL line does not stop the file.
"""

import codecs
import difflib
import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from vlmtune.data.reading.arrow import arrow_rows, rows_of_batches
from vlmtune.data.reading.class_labels import Named, named_columns
from vlmtune.data.reading.data_files import DataFile, place, suffix_of
from vlmtune.data.reading.parquet import rows_of
from vlmtune.data.types import RowProblem
from vlmtune.errors import VlmtuneError
from vlmtune.reading import check_regular, open_regular, read_regular
from vlmtune.units import GIB, MIB

if TYPE_CHECKING:
    import pyarrow.parquet

SUFFIXES = (".jsonl", ".json", ".parquet")
PACKED = (".jsonl.gz", ".json.gz")
ARROW = ".arrow"
"""What `datasets` keeps its rows in."""
_AS_JSONL = "write it as JSONL, one row a line: that is read line by line"
_BEYOND_LIMITS = "not usable JSON: nested too deeply, or a number of thousands of digits"  # Python's own limits
ROW_BYTES = 64 * MIB
"""The most that a line may have: at worst, as empty lists, it takes 25 times that in memory."""
JSON_FILE_BYTES = 2 * GIB
"""The most that is read of a JSON file, which is held whole; LLaVA's has half of it."""
_BLOCK_BYTES = MIB


@dataclass(frozen=True)
class Piece:
    """A part of a data file that can be read without the others."""

    path: Path
    start: int = 0
    """First byte of JSONL, first row group of Parquet; JSON has one piece only."""
    end: int | None = None
    """What follows the last one; None: everything from the start on."""
    first_number: int = 1
    """The number of the first row, for names of rows."""
    share_bytes: int = 0
    """What it is of the file, for progress."""
    called: str = ""
    """How the file is named in messages, where not by its own name."""

    @property
    def name(self) -> str:
        """How the file is named in messages."""
        return self.called or self.path.name


def read_rows(piece: Piece) -> Iterator[tuple[int, object]]:
    """Yield (number, row) of a checked data file; a line that is not JSON yields its `RowProblem` as the row."""
    readers = {".jsonl": _jsonl_rows, ".json": _json_rows, ".parquet": _parquet_rows, ARROW: _arrow_rows}
    return readers[suffix_of(piece.path).removesuffix(".gz")](piece)


def pieces(file: DataFile, piece_bytes: int) -> list[Piece]:
    """Return a checked data file in pieces of about `piece_bytes`, or of what the format can be cut into."""
    whole = Piece(file.path, share_bytes=file.path.stat().st_size, first_number=file.first_number, called=file.name)
    if file.suffix == ".jsonl":
        return [replace(piece, called=file.name) for piece in _line_pieces(file.path, piece_bytes)]
    if file.suffix == ".parquet":
        return _parts(whole, _rows_of_groups(whole))
    return _parts(whole, rows_of_batches(file.path, file.name)) if file.suffix == ARROW else [whole]


def _parts(whole: Piece, numbers_rows: list[int]) -> list[Piece]:
    """Return a file of several parts, with so many rows each, one piece a part."""
    firsts = accumulate(numbers_rows, initial=whole.first_number)
    share_bytes = whole.share_bytes // max(1, len(numbers_rows))
    return [
        replace(whole, start=index, end=index + 1, first_number=next(firsts), share_bytes=share_bytes)
        for index in range(len(numbers_rows))
    ]


def _line_pieces(path: Path, piece_bytes: int) -> list[Piece]:
    size_bytes = path.stat().st_size
    found, first_number = [], 1
    with open_regular(path) as file:
        while (start := file.tell()) < size_bytes:
            num_lines = _skip(file, piece_bytes)
            found.append(Piece(path, start, file.tell(), first_number, file.tell() - start))
            first_number += num_lines
    return found


def _skip(file: BinaryIO, num_bytes: int) -> int:
    """Go on by so many bytes and to the end of that line; return the number of lines passed."""
    num_lines, left_bytes = 0, num_bytes
    while left_bytes > 0 and (block := file.read(min(left_bytes, _BLOCK_BYTES))):
        num_lines += block.count(b"\n")
        left_bytes -= len(block)
    while rest := file.readline(_BLOCK_BYTES):
        if rest.endswith(b"\n"):
            return num_lines + 1
        left_bytes = 1
    return num_lines + bool(left_bytes)


def check_file(path: Path, suffixes: Sequence[str] = (*SUFFIXES, *PACKED, ARROW)) -> None:
    """Raise when there is no data file that could be read at `path`; `suffixes` are those that it may have."""
    if not path.exists():
        names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else None
        if not path.parent.is_dir():
            hint = f"the folder {path.parent} does not exist"
        raise VlmtuneError(f"data file {path} does not exist", hint)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not a regular file"
        raise VlmtuneError(f"data file {path} is {what}", f"name the {_listed(suffixes)} file itself")
    if suffix_of(path) not in suffixes:
        raise VlmtuneError(
            f"data file {path} is none of {_listed(suffixes)}", "convert it, or give it its right ending"
        )
    if path.stat().st_size == 0:
        raise VlmtuneError(f"data file {path} is empty")


def _listed(suffixes: Sequence[str]) -> str:
    """Return endings in words, but for those of packed files and of files that `datasets` makes."""
    *most, last = (suffix for suffix in suffixes if suffix != ARROW and not suffix.endswith(".gz"))
    return f"{', '.join(most)} or {last}"


def _jsonl_rows(piece: Piece) -> Iterator[tuple[int, object]]:
    with _opened(piece) as file:
        for number, line in enumerate(_lines(file, piece), piece.first_number):
            text = _decoded(line, piece.name, number).strip()
            if text in ("[", "{"):
                raise VlmtuneError(
                    f"{place(piece.name, number)}: a row is spread over several lines",
                    "write each row on one line, or rename a JSON array to .json",
                )
            if text:
                yield number, _parsed(text)


@contextmanager
def _opened(piece: Piece) -> Iterator[BinaryIO]:
    """The file of a piece, unpacked; what is wrong with it is a `VlmtuneError`, in the body too."""
    with open_regular(piece.path) as file:
        if not suffix_of(piece.path).endswith(".gz"):
            yield file
            return
        try:
            with gzip.open(file) as unpacked:
                yield unpacked
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise VlmtuneError(f"{piece.name}: cannot be unpacked: {error}", "replace the file") from None


def _lines(file: BinaryIO, piece: Piece) -> Iterator[bytes]:
    file.seek(piece.start)
    left_bytes = math.inf if piece.end is None else piece.end - piece.start
    while left_bytes > 0 and (line := file.readline(ROW_BYTES + 1)):
        if len(line) > ROW_BYTES:
            raise VlmtuneError(
                f"{piece.name}: a line is longer than {ROW_BYTES // MIB} MiB", "give its images as files"
            )
        left_bytes -= len(line)
        yield line


def _parsed(text: str) -> object:
    """The JSON value of one line, or the `RowProblem` that it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return RowProblem(f"not valid JSON: {error.msg} at column {error.colno}", "every line is one JSON object")
    except (ValueError, RecursionError):
        return RowProblem(_BEYOND_LIMITS, "every line is one JSON object")


def _json_rows(piece: Piece) -> Iterator[tuple[int, object]]:
    try:
        content = json.loads(_decoded(_whole(piece), piece.name))
    except json.JSONDecodeError as error:
        is_jsonl = error.msg == "Extra data" and error.lineno > 1
        hint = "one object a line is JSONL: rename the file to .jsonl" if is_jsonl else None
        raise VlmtuneError(f"{piece.name}:{error.lineno}: not valid JSON: {error.msg}", hint) from None
    except (ValueError, RecursionError):
        raise VlmtuneError(f"{piece.name}: {_BEYOND_LIMITS}") from None
    if isinstance(content, dict):
        content = content.get("data")
    if not isinstance(content, list):
        raise VlmtuneError(f"{piece.name}: no list of rows", 'write [{...}, {...}] or {"data": [{...}, {...}]}')
    yield from enumerate(content, 1)


def _whole(piece: Piece) -> bytes:
    if not suffix_of(piece.path).endswith(".gz"):
        return read_regular(piece.path, JSON_FILE_BYTES, hint=_AS_JSONL)
    with _opened(piece) as file:
        content = file.read(JSON_FILE_BYTES + 1)
    if len(content) > JSON_FILE_BYTES:
        raise VlmtuneError(f"{piece.name} unpacks to more than {JSON_FILE_BYTES // GIB} GiB", _AS_JSONL)
    return content


def _parquet_rows(piece: Piece) -> Iterator[tuple[int, object]]:
    number = piece.first_number - 1
    with _parquet_file(piece, lambda: number) as file:
        groups = range(piece.start, file.num_row_groups if piece.end is None else piece.end)
        named = named_columns(file.schema_arrow.metadata)
        for row in rows_of(file, piece.path, groups, piece.name):
            number += 1
            yield number, _with_names(row, named) if named else row


def _arrow_rows(piece: Piece) -> Iterator[tuple[int, object]]:
    metadata, rows = arrow_rows(piece.path, piece.name, piece.start, piece.end)
    named = named_columns(metadata)
    for number, row in enumerate(rows, piece.first_number):
        yield number, _with_names(row, named) if named else row


def _with_names(row: dict, named: dict[str, Named]) -> dict | RowProblem:
    try:
        return row | {column: name(row[column]) for column, name in named.items() if column in row}
    except RowProblem as problem:
        return problem


def parquet_columns(path: Path, name: str) -> list[str]:
    """Return the names of a Parquet file's columns."""
    with _parquet_file(Piece(path, called=name), lambda: 0) as file:
        return file.schema_arrow.names


def _rows_of_groups(whole: Piece) -> list[int]:
    """Return how many rows each row group of a Parquet file has."""
    with _parquet_file(whole, lambda: 0) as file:
        return [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]


@contextmanager
def _parquet_file(piece: Piece, num_read: Callable[[], int]) -> "Iterator[pyarrow.parquet.ParquetFile]":
    """The opened file; what is wrong with it is a `VlmtuneError`, in the body too."""
    import pyarrow
    import pyarrow.parquet

    try:
        check_regular(piece.path)
        with pyarrow.parquet.ParquetFile(piece.path) as file:
            yield file
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise VlmtuneError(f"{piece.name}: Parquet file cannot be read after row {num_read()}: {error}") from None


def _decoded(data: bytes, name: str, number: int | None = None) -> str:
    """The text of a line, or of the whole file."""
    problem = "the file is UTF-16, not UTF-8"
    if not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return data.removeprefix(codecs.BOM_UTF8).decode()  # the codec utf-8-sig does the same, in Python
        except UnicodeDecodeError as error:
            problem = f"not UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start + 1}"
    where = name if number is None else place(name, number)
    raise VlmtuneError(f"{where}: {problem}", "save it as UTF-8")
