"""JSONL, JSON and Parquet files -> rows with their places. One broken JSONL line does not stop the file."""

import difflib
import json
from collections.abc import Iterator
from pathlib import Path

from vlmtune.data.types import RowProblem
from vlmtune.errors import VlmtuneError

SUFFIXES = (".jsonl", ".json", ".parquet")
_BEYOND_LIMITS = "not usable JSON: nested too deeply, or a number of thousands of digits"  # Python's own limits
_PARQUET_BATCH_ROWS = 64  # embedded images make rows of megabytes


def read_rows(path: Path) -> Iterator[tuple[str, object]]:
    """Yield (where, row) of a data file; a line that is not JSON yields its `RowProblem` as the row."""
    _check_file(path)
    readers = {".jsonl": _jsonl_rows, ".json": _json_rows, ".parquet": _parquet_rows}
    return readers[path.suffix.lower()](path)


def _check_file(path: Path) -> None:
    if not path.exists():
        names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else None
        if not path.parent.is_dir():
            hint = f"the folder {path.parent} does not exist"
        raise VlmtuneError(f"data file {path} does not exist", hint)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not a regular file"
        raise VlmtuneError(f"data file {path} is {what}", f"name the {_suffix_list()} file itself")
    if path.suffix.lower() not in SUFFIXES:
        raise VlmtuneError(f"data file {path} is none of {_suffix_list()}", "convert it, or give it its right ending")
    if path.stat().st_size == 0:
        raise VlmtuneError(f"data file {path} is empty")


def _suffix_list() -> str:
    return f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


def _jsonl_rows(path: Path) -> Iterator[tuple[str, object]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path.name}:{number}"
            text = _decoded(line, where).strip()
            if text in ("[", "{"):
                raise VlmtuneError(
                    f"{where}: a row is spread over several lines",
                    "write each row on one line, or rename a JSON array to .json",
                )
            if text:
                yield where, _parsed(text)


def _parsed(text: str) -> object:
    """The JSON value of one line, or the `RowProblem` that it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return RowProblem(f"not valid JSON: {error.msg} at column {error.colno}", "every line is one JSON object")
    except (ValueError, RecursionError):
        return RowProblem(_BEYOND_LIMITS, "every line is one JSON object")


def _json_rows(path: Path) -> Iterator[tuple[str, object]]:
    try:
        content = json.loads(_decoded(path.read_bytes(), path.name))
    except json.JSONDecodeError as error:
        is_jsonl = error.msg == "Extra data" and error.lineno > 1
        hint = "one object a line is JSONL: rename the file to .jsonl" if is_jsonl else None
        raise VlmtuneError(f"{path.name}:{error.lineno}: not valid JSON: {error.msg}", hint) from None
    except (ValueError, RecursionError):
        raise VlmtuneError(f"{path.name}: {_BEYOND_LIMITS}") from None
    if isinstance(content, dict):
        content = content.get("data")
    if not isinstance(content, list):
        raise VlmtuneError(f"{path.name}: no list of rows", 'write [{...}, {...}] or {"data": [{...}, {...}]}')
    for number, row in enumerate(content, 1):
        yield f"{path.name} row {number}", row


def _parquet_rows(path: Path) -> Iterator[tuple[str, object]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path.name} row {number}", row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise VlmtuneError(f"{path.name}: Parquet file cannot be read after row {number}: {error}") from None


def _decoded(data: bytes, where: str) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise VlmtuneError(f"{where}: the file is UTF-16, not UTF-8", "save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise VlmtuneError(
            f"{where}: not UTF-8: byte 0x{data[error.start]:02x} at position {error.start + 1}", "save it as UTF-8"
        ) from None
