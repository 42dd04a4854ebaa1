"""Rows to be answered: of every shape, with an answer or without one, and pictures with one question for all."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmtune.data.pictures.folder import pictures_in
from vlmtune.data.reading.answers import COLUMN as ANSWERS
from vlmtune.data.reading.data_files import DataFile, place
from vlmtune.data.reading.files import Piece, read_rows
from vlmtune.data.reading.formats import (
    ANSWER_COLUMNS,
    CAPTION_COLUMN,
    QUESTION_COLUMNS,
    TURN_COLUMNS,
    parse_row,
)
from vlmtune.data.reading.renamed import members, renamed
from vlmtune.data.sources.opened import Settings, files_at_path
from vlmtune.data.types import BadRow, ImageRef, RowProblem, Sample, Turn

OPEN = "?"
"""In place of an answer that is still to be written; no model sees it."""
_OPEN_TURN = {"role": "assistant", "content": OPEN}


@dataclass(frozen=True)
class ToAnswer:
    """Rows and pictures to be answered, in their order; each walk over them reads them anew, as they are asked for."""

    prompt: str | None
    """The question of rows and pictures that have none."""
    pictures: Sequence[tuple[str, Path]] = ()
    files: Sequence[DataFile] = ()

    def __iter__(self) -> Iterator[Sample | BadRow]:
        for where, picture in self.pictures:
            asked = Turn("user", (ImageRef(path=str(picture)), self.prompt or ""))
            yield Sample((asked, Turn("assistant", (OPEN,))), where)
        for file in self.files:
            for number, row in read_rows(Piece(file.path, first_number=file.first_number, called=file.name)):
                yield _sample(row, file, number, self.prompt)


def to_answer(path: Path, settings: Settings) -> ToAnswer:
    """Return what is to be answered: pictures of a folder or one picture, or rows of whatever a source may be.

    Raises:
        VlmtuneError: there is nothing to read, or it cannot be opened.
    """
    if pictures := pictures_in(path):
        return ToAnswer(settings.prompt, pictures)
    return ToAnswer(settings.prompt, files=files_at_path(str(path), settings))


def _sample(row: object, file: DataFile, number: int, prompt: str | None) -> Sample | BadRow:
    where = place(file.name, number)
    try:
        if isinstance(row, RowProblem):
            raise row
        named = renamed(members(row), file.columns, Counter())
        return parse_row(open_row(named, prompt), where, file.rules, number).sample
    except RowProblem as problem:
        return BadRow(where, problem.problem, problem.hint, number)


def open_row(row: object, prompt: str | None) -> object:
    """Return a row with an answer that is still open in place of none, and a question in place of none.

    Raises:
        RowProblem: nothing is asked.
    """
    if not isinstance(row, dict):
        return row
    filled = {key: value for key, value in row.items() if value not in (None, []) and not is_blank(value)}
    for name in TURN_COLUMNS:
        if isinstance(filled.get(name), list):
            return filled | {name: _open_turns(filled[name])}
    if isinstance(filled.get("prompt"), list):
        return filled | {"completion": filled.get("completion") or [_OPEN_TURN]}
    if not filled.keys() & {*QUESTION_COLUMNS, "texts"}:
        if prompt is None:
            raise RowProblem("the row has no question", "--prompt TEXT asks all such rows")
        filled["question"] = prompt
    if not filled.keys() & {*ANSWER_COLUMNS, ANSWERS, CAPTION_COLUMN, "texts"}:
        filled["answer"] = OPEN
    return filled


def is_blank(value: object) -> bool:
    """Return whether it is a text that says nothing."""
    return isinstance(value, str) and not value.strip()


def _open_turns(turns: list) -> list:
    last = turns[-1]
    speaks = last.get("role") or last.get("from") if isinstance(last, dict) else None
    return turns if speaks in ("assistant", "gpt", "function_call", "tool_call") else [*turns, _OPEN_TURN]
