"""The files that a run's rows are in, each with how it is read, and the names of the rows in them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlmtune.data.reading.image_refs import ImageRules

ROWS_OF_FILE = 2**32
"""A row's number among all files is that of its file times this, and its number in the file."""
BY_LINE = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class DataFile:
    """A file with rows."""

    path: Path
    rules: ImageRules
    name: str = ""
    """How its rows are named: `train.jsonl`, `shards/a.parquet`, `org/data[train]`."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Names of columns in the file and what they are called here."""
    prompt: str | None = None
    """Question of rows that have none."""
    source: int = 0
    """Which of the run's sources it belongs to."""
    first_number: int = 1
    """The number of its first row, where a data set has several files that nobody knows by name."""

    @property
    def suffix(self) -> str:
        """What says how it is read, `.jsonl.gz` too."""
        return suffix_of(self.path)


@dataclass(frozen=True)
class FoundFile:
    """A file with rows, and what it was before `datasets` read it."""

    path: Path
    """What is read."""
    named_after: Path
    """What the user knows it by."""
    first_number: int = 1
    called: str = ""
    """How its rows are named, where it has no name of its own."""
    origin: str = ""
    """What its rows follow from, where that is no file."""


@dataclass(frozen=True)
class Source:
    """Where some of the files came from, as the config names it."""

    name: str
    weight: float = 1.0
    """How often an epoch takes its rows."""
    digest: str = ""
    """Of what its rows are read from."""


@dataclass(frozen=True)
class DataFiles:
    """All files of a run's training rows, or of those held out."""

    files: tuple[DataFile, ...]
    sources: tuple[Source, ...] = ()

    def __iter__(self) -> Iterator[DataFile]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def name(self) -> str:
        """What all of them are called in messages and progress."""
        return self.files[0].name if len(self) == 1 else f"{len(self)} data files"

    @property
    def size_bytes(self) -> int:
        """What all of them take."""
        return sum(file.path.stat().st_size for file in self)

    def place(self, number: int) -> str:
        """Return the name of a row by its number among all files."""
        index, inside = divmod(number, ROWS_OF_FILE)
        return place(self.files[index].name, inside)


def place(name: str, number: int) -> str:
    """Return the name of a row: `train.jsonl:12`, or `train.parquet row 12` where lines mean nothing."""
    return f"{name}:{number}" if name.lower().endswith(BY_LINE) else f"{name} row {number}"


def suffix_of(path: Path) -> str:
    """Return the ending of a file's name in small letters, what is packed with its own: `.jsonl.gz`."""
    packed = path.suffix.lower() == ".gz"
    return (Path(path.stem).suffix if packed else "").lower() + path.suffix.lower()


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return short names of files: the last part, as many parts more as tell each from all others."""
    names = [path.name for path in paths]
    depth = 1
    while len(set(names)) < len(set(paths)) and depth < max(len(path.parts) for path in paths):
        depth += 1
        names = ["/".join(path.parts[-depth:]) for path in paths]
    return names
