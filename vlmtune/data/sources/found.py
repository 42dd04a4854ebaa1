"""A path of the config -> the files with rows that it stands for: a file, the matches of a pattern, or a folder's."""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vlmtune.data.reading.data_files import FoundFile, suffix_of
from vlmtune.data.reading.files import ARROW, PACKED, SUFFIXES, check_file
from vlmtune.errors import VlmtuneError
from vlmtune.reading import open_regular

READ_AS_THEY_ARE = (*SUFFIXES, *PACKED)
BY_LIBRARY = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".tar")
"""What `datasets` reads."""
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Rows of an image folder; `file_name` starts from where they lie."""
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"
"""What `save_to_disk` writes beside the rows of a data set, and beside those of its splits."""
TRAIN = "train"
SPLITS = {
    TRAIN: ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""What files and folders of a split are called, as `datasets` has it."""
HINT_METADATA = (
    'write metadata.jsonl beside them: {"file_name": "1.jpg", "question": "What is this?", "answer": "A cat."}'
)
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif")


def files_at(path: Path, split: str | None) -> list[FoundFile]:
    """Return the files with rows that a path stands for, in the order of their names.

    Raises:
        VlmtuneError: there are none, or one of them is no file of rows.
    """
    with _access_told():
        return _files_at(path, split)


def _files_at(path: Path, split: str | None) -> list[FoundFile]:
    if path.is_dir():
        os.scandir(path).close()  # what may not be listed would look empty
        return _in_folder(path, split)
    if split:
        raise VlmtuneError(f"{path} is no folder, and has no split {split}", "split is for folders and hub data sets")
    if not path.exists() and glob.has_magic(str(path)):
        matching = [Path(one) for one in sorted(glob.glob(str(path), recursive=True)) if Path(one).is_file()]
        if not matching:
            raise VlmtuneError(f"no data file matches {path}", "correct the pattern: * is any name, ** any folders")
        return _each(matching)
    return _each([path])


@contextmanager
def _access_told() -> Iterator[None]:
    """Turn what may not be looked at into an error."""
    try:
        yield
    except PermissionError as error:
        raise VlmtuneError(
            f"{error.filename} cannot be read: {error.strerror}",
            "check its permissions, and those of the folders that it is in",
        ) from None


def _below(folder: Path) -> list[Path]:
    """Return all files in a folder and in the folders in it; Path.rglob passes over those that may not be read."""

    def refuse(error: OSError) -> None:
        raise error

    return [Path(root, name) for root, _, names in os.walk(folder, onerror=refuse) for name in names]


def _each(paths: Sequence[Path]) -> list[FoundFile]:
    return [file for path in paths for file in _files_of(path)]


def _files_of(path: Path) -> list[FoundFile]:
    check_file(path, (*READ_AS_THEY_ARE, ARROW, *BY_LIBRARY))
    open_regular(path).close()
    if suffix_of(path) not in BY_LIBRARY:
        return [FoundFile(path, path)]
    from vlmtune.data.sources.library import files_of

    return files_of(path)


def _in_folder(folder: Path, split: str | None) -> list[FoundFile]:
    if (folder / SAVED).is_file() or (folder / SAVED_SPLITS).is_file():
        from vlmtune.data.sources.library import saved_files

        return saved_files(folder, split)
    if split or (folder / TRAIN).is_dir():
        folder = _folder_of(folder, split or TRAIN)
    below = _below(folder)
    if rows := sorted(path for path in below if path.name in METADATA):
        return _each(rows)
    shards = sorted(path for path in folder.iterdir() if suffix_of(path) in (*READ_AS_THEY_ARE, *BY_LIBRARY))
    if shards:
        return _each(_of_split(shards, split or TRAIN, folder))
    if pictures := sorted(path for path in below if path.suffix.lower() in _PICTURES):
        return _by_class(folder, pictures)
    raise _no_rows(folder)


def _by_class(folder: Path, pictures: Sequence[Path]) -> list[FoundFile]:
    """Return the rows of pictures in folders that are named after what they show.

    Raises:
        VlmtuneError: they lie otherwise, or all in one folder, whose name says nothing.
    """
    if {path.parent.parent for path in pictures} != {folder} or len({path.parent for path in pictures}) == 1:
        raise VlmtuneError(
            f"the folder {folder} holds pictures, and neither metadata nor one folder for each thing to learn",
            HINT_METADATA,
        )
    from vlmtune.data.sources.library import class_files

    return class_files(folder, pictures)


def _folder_of(folder: Path, split: str) -> Path:
    """Return the folder of a split; the whole one where file names have to tell."""
    return folder / split if (folder / split).is_dir() else folder


def _of_split(shards: Sequence[Path], split: str, folder: Path) -> list[Path]:
    """Return the shards of a split; all of them where no name tells of one."""
    splits = {shard: _split_in(shard.name) for shard in shards}
    if not any(splits.values()):
        return [*shards]
    wanted = _split_in(split) or split
    if chosen := [shard for shard, found in splits.items() if found == wanted]:
        return chosen
    names = ", ".join(sorted({found for found in splits.values() if found}))
    raise VlmtuneError(f"the folder {folder} has no split {split}", f"its files are named after {names}")


def _split_in(name: str) -> str | None:
    """Return the split that a file is named after: `train-00000-of-00002.parquet`."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for split, called in SPLITS.items() if any(word in called for word in words)), None)


def _no_rows(folder: Path) -> VlmtuneError:
    kinds = ", ".join((*SUFFIXES, ".csv", ".tsv", ".tar"))
    inside = sorted(path.name for path in folder.iterdir() if path.is_dir())[:10]
    way_out = f"name one of its folders: {', '.join(inside)}" if inside else "name the file itself"
    return VlmtuneError(
        f"the folder {folder} holds no rows: no {kinds}, or one of them with .gz, and no pictures", way_out
    )
