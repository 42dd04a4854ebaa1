"""A piece of a data file -> its samples, and what else was found in it; pieces can be read side by side."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from vlmtune.config.text import shown
from vlmtune.data.reading.data_files import ROWS_OF_FILE, DataFile, DataFiles, place
from vlmtune.data.reading.files import Piece, read_rows
from vlmtune.data.reading.formats import parse_row
from vlmtune.data.reading.renamed import members, renamed, with_prompt
from vlmtune.data.types import BadRow, RowProblem, Rows, Sample, count, numbers_of, shortened
from vlmtune.errors import VlmtuneError

SHOWN_COLUMNS = 8
"""Of a row, where a column is not among them."""


@dataclass
class Found:
    """What reading finds besides samples."""

    bad_rows: list[BadRow] = field(default_factory=list)
    bad_blobs: list[BadRow] = field(default_factory=list)
    """Embedded images that cannot be used; looked at only where rows are written into a table."""
    num_placed_first: int = 0
    unused_columns: Counter[str] = field(default_factory=Counter)
    num_class_numbers: int = 0
    num_embedded: int = 0
    embedded_bytes: int = 0
    renamed_columns: Counter[str] = field(default_factory=Counter)
    """Rows in which `data.columns` has renamed a column, by its name in the data."""

    def add(self, other: "Found") -> None:
        """Take in what was found in the next piece."""
        self.bad_rows += other.bad_rows
        self.bad_blobs += other.bad_blobs
        self.num_placed_first += other.num_placed_first
        self.unused_columns += other.unused_columns
        self.num_class_numbers += other.num_class_numbers
        self.num_embedded += other.num_embedded
        self.embedded_bytes += other.embedded_bytes
        self.renamed_columns += other.renamed_columns

    def to_json(self) -> dict:
        """Return it as JSON values, but for what the file is called."""

        def named(bad_rows: list[BadRow]) -> list[tuple]:
            return [(bad.number, bad.problem, bad.hint) for bad in bad_rows]

        return vars(self) | {"bad_rows": named(self.bad_rows), "bad_blobs": named(self.bad_blobs)}

    @classmethod
    def from_json(cls, values: dict, files: DataFiles) -> "Found":
        """Return what `to_json` wrote of these files."""

        def bad(name: str) -> list[BadRow]:
            return [BadRow(files.place(number), *why, number) for number, *why in values.pop(name)]

        counted = {name: Counter(values.pop(name)) for name in ("unused_columns", "renamed_columns")}
        return cls(bad("bad_rows"), bad("bad_blobs"), **counted, **values)

    def rows(self, files: DataFiles, samples: Sequence[Sample]) -> Rows:
        """Return the rows of files whose samples are these."""
        if not samples and not self.bad_rows:
            raise VlmtuneError(f"data file {files.files[0].path if len(files) == 1 else files.name} holds no rows")
        self._refuse_absent_columns(files)
        _refuse_empty(files, samples, self.bad_rows)
        return Rows(samples, self.bad_rows, self._notes(isinstance(samples, list)))

    def _refuse_absent_columns(self, files: DataFiles) -> None:
        """Raise where a column that is to be renamed is in no row."""
        for name in dict.fromkeys(name for file in files for name in file.columns):
            if not self.renamed_columns[name]:
                there = _columns_there(files)
                raise VlmtuneError(
                    f"data.columns: no row has a column {shown(name)}",
                    f"write `name in the data: name here`{f'; {there}' if there else ''}",
                )

    def _notes(self, in_memory: bool) -> tuple[str, ...]:
        notes = []
        if self.num_placed_first:
            rows = count(self.num_placed_first, "row")
            notes.append(f"images placed before the text of the first user turn in {rows} without <image>")
        if self.unused_columns:
            columns = sorted(self.unused_columns.items())[:20]
            names = ", ".join(f"{name} ({count(number, 'row')})" for name, number in columns)
            notes.append(f"columns not used: {names}")
        if self.num_class_numbers:
            rows = count(self.num_class_numbers, "row")
            notes.append(f"label is a number in {rows}, and is learned as one: write names where it stands for a class")
        if self.num_embedded:
            images, held = count(self.num_embedded, "image"), ", held in memory" if in_memory else ""
            notes.append(f"{images} embedded in the rows{held}: {self.embedded_bytes / 2**20:,.1f} MiB")
        return tuple(notes)


def _columns_there(files: DataFiles) -> str:
    """Return which columns the first row has, in words; nothing where it has none."""
    for file in files:
        for number, row in read_rows(Piece(file.path, first_number=file.first_number, called=file.name)):
            names = list(columns) if isinstance(columns := members(row), dict) else []
            listed = ", ".join(map(shortened, names[:SHOWN_COLUMNS])) + (", …" if len(names) > SHOWN_COLUMNS else "")
            return f"{place(file.name, number)} has {listed}" if names else ""
    return ""


def _refuse_empty(files: DataFiles, samples: Sequence[Sample], bad_rows: list[BadRow]) -> None:
    """Raise where one of several sources has no row, usable or not."""
    if len(files.sources) < 2:
        return
    numbers = {*numbers_of(samples), *(bad.number for bad in bad_rows)}
    there = {files.files[number // ROWS_OF_FILE].source for number in numbers}
    for index, source in enumerate(files.sources):
        if index not in there:
            raise VlmtuneError(f"{source.name} holds no rows", "remove it from data.train_path")


def samples_of(piece: Piece, file: DataFile, index: int, found: Found) -> Iterator[Sample]:
    """Yield the usable rows of a piece of the file at `index` among all.

    The others, and what notes should tell, go into `found`.
    """
    for inside, row in read_rows(piece):
        where, number = place(file.name, inside), index * ROWS_OF_FILE + inside
        try:
            if isinstance(row, RowProblem):
                raise row
            row = with_prompt(renamed(members(row), file.columns, found.renamed_columns), file.prompt)
            parsed = parse_row(row, where, file.rules, number)
        except RowProblem as problem:
            found.bad_rows.append(BadRow(where, problem.problem, problem.hint, number))
            continue
        found.num_placed_first += parsed.images_placed_first
        found.num_class_numbers += parsed.has_class_number
        if parsed.unused_columns:  # a counter takes longer over nothing than the rest of these lines
            found.unused_columns.update(parsed.unused_columns)
        embedded = [len(ref.data) for ref in parsed.sample.images if ref.data is not None]
        found.num_embedded += len(embedded)
        found.embedded_bytes += sum(embedded)
        yield parsed.sample
