"""The rows that a config names, read and looked at: shared by the commands that read data."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vlmtune.workflow.progress import progress

if TYPE_CHECKING:
    from vlmtune.config.load import LoadedConfig
    from vlmtune.data.reading.data_files import DataFiles
    from vlmtune.data.types import Rows


@dataclass(frozen=True)
class ReadRows:
    """The rows of one key of a config, unusable pictures among the bad rows."""

    rows: "Rows"
    files: "DataFiles"
    held_out: "Rows | None" = None
    """Of the training rows the share that is not trained on (`data.val_fraction`)."""


def read_rows(loaded: "LoadedConfig", value: object, *, live: bool, max_samples: int | None = None) -> ReadRows:
    """Return the rows of sources, written as `data.train_path` is, by the config's data settings.

    `live`: long work on them may be shown on a terminal.

    Raises:
        VlmtuneError: a source cannot be opened or read.
    """
    from vlmtune.config.load import resolved
    from vlmtune.data.checked import with_images_checked
    from vlmtune.data.samples import read_files
    from vlmtune.data.sources.opened import Settings, open_sources
    from vlmtune.data.sources.shares import limited

    data, told = loaded.config.data, progress(live)
    resolve = partial(resolved, loaded.base_dir)
    files = open_sources(value, Settings(resolve, data.image_dir, data.allow_urls, data.columns, data.prompt))
    rows = limited(read_files(files, told), max_samples, loaded.config.training.seed)
    return ReadRows(with_images_checked(rows, progress=told), files)


def read_training(loaded: "LoadedConfig", *, live: bool) -> ReadRows:
    """Return the rows to train on, and those of them that are held out.

    Raises:
        VlmtuneError: a source cannot be opened or read, or the split leaves no row.
    """
    from vlmtune.data.boxes.check import refuse_turned_boxes
    from vlmtune.data.sources.shares import split
    from vlmtune.data.types import Rows

    data, seed = loaded.config.data, loaded.config.training.seed
    read = read_rows(loaded, data.train_path, live=live, max_samples=data.max_samples)
    if data.augment.rotation:
        refuse_turned_boxes(read.rows.samples)
    if data.val_fraction is None or not read.rows.samples:
        return read
    train, held_out = split(read.rows.samples, data.val_fraction, seed)
    return replace(read, rows=replace(read.rows, samples=train), held_out=Rows(held_out, [], ()))


def missing_file(loaded: "LoadedConfig", value: object) -> Path | None:
    """Return the first file or folder of some sources that is not there; patterns and the hub have none."""
    import glob

    from vlmtune.data.sources.opened import sections_of

    paths = (loaded.resolve_path(section.path) for section in sections_of(value) if section.path)
    return next((path for path in paths if not path.exists() and not glob.has_magic(str(path))), None)


def with_commits(loaded: "LoadedConfig", known: dict[str, str]) -> "tuple[LoadedConfig, dict[str, str]]":
    """Return the config with the commit of each hub data set as its revision, and which revision is which commit.

    `known` are those of the run that is to be continued: a branch may have moved since.

    Raises:
        VlmtuneError: the hub refuses a data set, or cannot be reached.
    """
    commits = dict(known)
    for key in ("data.train_path", "data.val_path"):
        value = getattr(loaded.config.data, key.removeprefix("data."))
        if value is not None and not isinstance(value, str):
            several = value if isinstance(value, tuple) else (value,)
            pinned = tuple(_pinned(one, key, commits) for one in several)
            loaded = loaded.with_values(
                {key: pinned if isinstance(value, tuple) else pinned[0]}, loaded.sources[key]
            )  # fmt: skip
    return loaded, commits


def _pinned(source: object, key: str, commits: dict[str, str]) -> object:
    """Return a source as a config has it, with the commit that its revision stands for."""
    from vlmtune.hub.commits import pinned_commit

    if isinstance(source, str) or source.name is None:
        return source if isinstance(source, str) else source.model_dump()
    asked = f"{source.name}@{source.revision or 'main'}"
    if asked not in commits:
        commits[asked] = pinned_commit(source.name, source.revision, key)
    return source.model_dump() | {"revision": commits[asked]}
