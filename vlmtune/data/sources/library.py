"""What `datasets` reads: CSV, tars, pictures by class, folders of `save_to_disk`, hub data sets → its Arrow files.

The library keeps them in its own cache and reads nothing twice; `vlmtune.data.reading.arrow` reads them without it.
"""

import glob
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from vlmtune.data.reading.arrow import rows_of_batches
from vlmtune.data.reading.data_files import FoundFile, suffix_of
from vlmtune.data.sources.pinned import ArrowFiles, kept_files
from vlmtune.errors import VlmtuneError
from vlmtune.files import text_sha256

if TYPE_CHECKING:
    from datasets import Dataset

QUOTES = 'write a cell that holds the separator or a line end in quotes: "a cat, black"'


def files_of(path: Path) -> list[FoundFile]:
    """Return the Arrow files of a CSV file or a tar."""
    with _told(path.name):
        arrow = _arrow_files(_tar(path) if path.suffix.lower() == ".tar" else _table(path), path.name)
    return [FoundFile(file, path, first_number) for file, first_number in arrow]


def saved_files(folder: Path, split: str | None) -> list[FoundFile]:
    """Return the Arrow files of a folder that `save_to_disk` has written, of one split where it has several."""
    with _told(str(folder)):
        from datasets import DatasetDict, load_from_disk

        found = load_from_disk(str(folder))
        if isinstance(found, DatasetDict):
            found = found[_split_of(folder, split, list(found))]
        arrow = _arrow_files(found, str(folder))
    return [FoundFile(file, file, called=f"{folder.name}/{file.name}") for file, _ in arrow]


def class_files(folder: Path, pictures: Sequence[Path]) -> list[FoundFile]:
    """Return the Arrow files of pictures whose folders are named after what they show, as labels."""
    with _told(str(folder)):
        from datasets import load_dataset

        patterns = [f"{glob.escape(str(folder))}/*/*{ending}" for ending in sorted({one.suffix for one in pictures})]
        labelled = load_dataset("imagefolder", data_files={"train": patterns}, split="train", drop_labels=False)
        arrow = _arrow_files(labelled, str(folder))
    told = "\n".join(f"{one.relative_to(folder).as_posix()} {one.stat().st_size}" for one in pictures)
    return [FoundFile(file, file, first_number, folder.name, text_sha256(told)) for file, first_number in arrow]


def hub_files(name: str, subset: str | None, split: str, commit: str | None) -> list[FoundFile]:
    """Return the Arrow files of a split of a hub data set, downloaded where they are not in the library's cache.

    The hub is not asked for those of a commit that were found before.
    """

    def find() -> ArrowFiles:
        with _told(name):
            from datasets import load_dataset

            found = _arrow_files(load_dataset(name, subset, split=split, revision=commit), name)
        if commit and not all(commit in file.parts for file, _ in found):  # without a hub, the library takes any
            raise VlmtuneError(
                f"{name}: commit {commit} is not in the local cache, and the hub cannot be reached",
                "check the connection",
            )
        return found

    called = f"{name}[{split}]"
    origin = text_sha256(f"{name} {subset} {split} {commit}")
    arrow = kept_files(origin, find) if commit else find()
    return [FoundFile(file, file, first_number, called, origin) for file, first_number in arrow]


def _table(path: Path) -> "Dataset":
    """Every column of a table as text: numbers stay as they are written, and an empty cell is nothing."""
    import pandas
    from datasets import Features, Value, load_dataset

    separator = "\t" if suffix_of(path).startswith(".tsv") else ","
    first = pandas.read_csv(path, sep=separator, nrows=1, dtype=str)
    if not len(first):
        raise VlmtuneError(f"data file {path} holds no rows")
    if more := first.index.nlevels * (not isinstance(first.index, pandas.RangeIndex)):
        # pandas takes the first cells of every row for its name then, and moves all others one column to the left.
        names = len(first.columns)
        raise VlmtuneError(f"{path.name} row 1 has {names + more} cells, and the header {names}", QUOTES)
    features = Features({name: Value("string") for name in first.columns})
    files = {"train": [glob.escape(str(path))]}
    options = {"sep": separator, "features": features, "keep_default_na": False}
    return load_dataset("csv", data_files=files, split="train", **options)


def _tar(path: Path) -> "Dataset":
    from datasets import load_dataset

    return load_dataset("webdataset", data_files={"train": [glob.escape(str(path))]}, split="train")


def _arrow_files(found: "Dataset", name: str) -> ArrowFiles:
    """Return the files that a data set is kept in, and the number of the first row in each."""
    files, number = [], 1
    for file in found.cache_files:
        path = Path(file["filename"])
        files.append((path, number))
        number += sum(rows_of_batches(path, name))
    if not len(found):
        raise VlmtuneError(f"{name} holds no rows")
    if number != len(found) + 1:
        raise VlmtuneError(f"{name}: only some rows of its files belong to it", "save it anew: it was filtered")
    return files


def _split_of(folder: Path, split: str | None, splits: list[str]) -> str:
    wanted = split or (splits[0] if len(splits) == 1 else "train")
    if wanted not in splits:
        raise VlmtuneError(f"{folder} has no split {wanted}", f"it has {', '.join(splits)}: say which, with split")
    return wanted


@contextmanager
def _told(name: str) -> Iterator[None]:
    """What `datasets` says of a source is one `VlmtuneError`; nothing else is printed.

    Raises:
        VlmtuneError: that, or the library is not installed.
    """
    if find_spec("datasets") is None:
        raise VlmtuneError(
            f"{name} is read by the library datasets, which is not installed", "pip install 'vlmtune[datasets]'"
        )
    import datasets
    import pyarrow
    from huggingface_hub.errors import HfHubHTTPError

    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    except datasets.exceptions.DatasetNotFoundError as error:
        hint = "check the spelling; if it is private or gated, accept its licence and run `hf auth login`"
        raise VlmtuneError(f"{name}: {_innermost(error)}", hint) from None
    except (
        datasets.exceptions.DatasetsError, HfHubHTTPError, pyarrow.ArrowException, OSError, ValueError, TypeError,
    ) as error:  # fmt: skip
        raise VlmtuneError(f"{name} cannot be read: {_innermost(error)}", _way_out(error)) from None


def _innermost(error: BaseException) -> str:
    """The first line of what went wrong at the bottom."""
    error = _bottom(error)
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _bottom(error: BaseException) -> BaseException:
    """What went wrong at the bottom: the library wraps it in general words."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _way_out(error: BaseException) -> str:
    import datasets
    import pandas

    if isinstance(_bottom(error), pandas.errors.ParserError):
        return QUOTES
    if isinstance(error, datasets.exceptions.DatasetGenerationError):
        return "its rows are not all of one schema, or a file is damaged; as JSON Lines, rows may differ"
    return "see whether `datasets.load_dataset` reads it"
