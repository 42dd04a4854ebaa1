"""Large data files, or many, read once into tables on disk, which stay in the user's cache folder for the next start.

A table is a folder named by everything that decides it: the data file's content, how it is read, and by what code. It
is made under another name and renamed when it is whole, so that what is found under its name is never half of it.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa

import vlmtune.data
from vlmtune.data.boxes.texts import lists_of_four
from vlmtune.data.boxes.writing import has_boxes
from vlmtune.data.images import Look, checked_look, without_warnings
from vlmtune.data.progress import Progress
from vlmtune.data.reading.data_files import DataFile, DataFiles
from vlmtune.data.reading.files import Piece, pieces
from vlmtune.data.reading.pieces import Found, samples_of
from vlmtune.data.table.layout import laid_out
from vlmtune.data.table.pool import each
from vlmtune.data.table.rows import BLOB, BLOBS, INDEX, REF_OF_IMAGE, REFS, ROW, PartWriter, TableRows, mapped_parts
from vlmtune.data.types import BadRow, ImageRef, RowProblem, Rows, Sample
from vlmtune.files import cache_folder, code_sha256, file_sha256

PIECE_BYTES = 16 * 2**20
KEPT = 10
"""Tables in the cache folder; those that were not used for longest go first."""
PARTIAL = "partial-"
ABANDONED_S = 24 * 3600
"""A half-made table that was not written to for so long belongs to a process that was killed."""
FOUND = "found.json"
"""Written last: digests of the other files, what reading found besides the rows, and the digest of both."""
REFS_BATCH = 2**16
REFS_SCHEMA = pa.schema({"ref": pa.large_string()})


def table_of(files: DataFiles, progress: Progress) -> Rows:
    """Return the rows of data files from their table, which is made when there is none.

    Raises:
        OSError: no table can be written: the disk is full, or the cache folder read-only.
        UnicodeEncodeError: neither can the name of a folder that is not UTF-8.
        VlmtuneError: a file cannot be read.
    """
    folder = cache_folder() / "rows" / _key(files)
    found = whole_table(folder, files)
    if found is None:
        _make(folder, files, progress)
        found = whole_table(folder, files)
        if found is None:
            raise OSError(f"{folder} is not what was written")
    num_rows = len(np.load(folder / INDEX, mmap_mode="r"))
    return found.rows(files, TableRows(folder, files, np.arange(num_rows, dtype=np.int32), progress))


def whole_table(folder: Path, files: DataFiles) -> Found | None:
    """Return what reading found besides the rows of a table, which is now in use; None where there is no whole one."""
    try:
        told = json.loads((folder / FOUND).read_text(encoding="utf-8"))
        if told.pop("sha256") != _digest(told) or told["files"] != _digests(folder, told["files"]):
            return None
        found = Found.from_json(told["found"], files)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    with suppress(OSError):  # a cache that cannot be written can be read
        os.utime(folder)
    return found


def _digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: file_sha256(folder / name) for name in sorted(names)}


def _digest(told: dict) -> str:
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _key(files: DataFiles) -> str:
    """Return the name of a table; Pillow decides too, which looks at embedded images."""
    code = code_sha256(Path(vlmtune.data.__file__).parent)
    each_file = [
        (
            file_sha256(file.path),
            file.suffix,
            file.rules.base_dir,
            file.rules.allow_urls,
            file.first_number,
        )
        for file in files
    ]
    told = [(sorted(file.columns.items()), file.prompt) for file in files]
    decided_by = [each_file, told, code, version("pillow")]
    return hashlib.sha256(json.dumps(decided_by).encode()).hexdigest()[:32]


def _make(folder: Path, files: DataFiles, progress: Progress) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    _forget_old(folder.parent)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=folder.parent, ignore_cleanup_errors=True) as partial:
        made = Path(partial) / "made"
        made.mkdir()
        _write(made, files, progress)
        try:
            made.rename(folder)
        except OSError:  # another run was quicker, or a broken table is in the way
            if whole_table(folder, files) is None:
                folder.rename(Path(partial) / "broken")
                made.rename(folder)


def _forget_old(tables: Path) -> None:
    """Remove what killed processes have left, and all tables but the newest."""
    unused_s = {}
    for folder in tables.iterdir():
        with suppress(FileNotFoundError):  # another run may remove it at this moment
            unused_s[folder] = time.time() - folder.stat().st_mtime
    half_made = [folder for folder in unused_s if folder.name.startswith(PARTIAL)]
    abandoned = [folder for folder in half_made if unused_s[folder] > ABANDONED_S]
    whole = sorted(unused_s.keys() - half_made, key=unused_s.get)
    for folder in (*abandoned, *whole[KEPT - 1 :]):
        shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, files: DataFiles, progress: Progress) -> None:
    parts = [(piece, file, index) for index, file in enumerate(files) for piece in pieces(file, PIECE_BYTES)]
    tasks = [_Task(*part, folder / f"part-{number:06}.arrow") for number, part in enumerate(parts)]
    found, indexes, blobs = Found(), [np.empty(0, ROW)], [np.empty(0, BLOB)]
    with progress(f"reading {files.name}", files.size_bytes) as advance:
        for task, part in zip(tasks, each(_write_part, tasks), strict=True):
            found.add(part.found)
            indexes.append(part.index)
            blobs.append(part.blobs)
            advance(task.piece.share_bytes)
    np.save(folder / INDEX, np.concatenate(indexes))
    np.save(folder / BLOBS, np.concatenate(blobs))
    _write_refs(folder)
    pa.default_memory_pool().release_unused()  # Arrow would keep what all the names took, for a next time
    told = {"files": _digests(folder, os.listdir(folder)), "found": found.to_json()}
    (folder / FOUND).write_text(json.dumps({**told, "sha256": _digest(told)}), encoding="utf-8")


def _write_refs(folder: Path) -> None:
    """Write every path and address once, and which of them each image is."""
    parts = mapped_parts(folder)
    refs = [batch.column("refs").flatten().cast(pa.large_string()) for part in parts for batch in part.batches]
    once = pa.chunked_array(refs, pa.large_string()).combine_chunks().dictionary_encode()
    np.save(folder / REF_OF_IMAGE, once.indices.to_numpy())
    with (folder / REFS).open("wb") as file, pa.ipc.new_file(file, REFS_SCHEMA) as arrow:
        arrow.write_table(pa.table([once.dictionary], REFS_SCHEMA), max_chunksize=REFS_BATCH)


@dataclass(frozen=True)
class _Task:
    piece: Piece
    file: DataFile
    index: int
    """Of the file among all."""
    target: Path


@dataclass(frozen=True)
class _Part:
    """What a process tells of the part of a table that it has written."""

    found: Found
    index: np.ndarray
    blobs: np.ndarray


def _write_part(task: _Task) -> _Part:
    """Read a piece of the data file and write it as a part of the table."""
    found, index, blobs = Found(), [], []
    with PartWriter(task.target) as part, without_warnings():
        for sample in samples_of(task.piece, task.file, task.index, found):
            layout = laid_out(sample)
            part.add(sample.number, layout)
            flags = has_boxes(sample), any(map(lists_of_four, layout.texts))
            index.append((sample.number, len(layout.refs), len(layout.blobs), *flags))
            blobs += [_look(blob, sample, found) for blob in layout.blobs]
    return _Part(found, np.array(index, ROW), np.array(blobs, BLOB))


def _look(blob: bytes, sample: Sample, found: Found) -> Look:
    """Return what is seen of an embedded image; zeros where it cannot be used, and `found` says why."""
    try:
        return checked_look(ImageRef(data=blob))
    except RowProblem as problem:
        found.bad_blobs.append(BadRow(sample.where, problem.problem, problem.hint, sample.number))
        return Look(0, 0, 0)
