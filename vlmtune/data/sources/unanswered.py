"""Rows to be answered: of every shape, with an answer or without one, and pictures with one question for all."""

from collections.abc import Iterator
from pathlib import Path

from vlmtune.data.pictures.folder import pictures_in
from vlmtune.data.reading.answers import COLUMN as ANSWERS
from vlmtune.data.reading.files import Piece, check_file, read_rows
from vlmtune.data.reading.formats import (
    ANSWER_COLUMNS,
    CAPTION_COLUMN,
    QUESTION_COLUMNS,
    TURN_COLUMNS,
    parse_row,
)
from vlmtune.data.reading.image_refs import ImageRules
from vlmtune.data.types import BadRow, ImageRef, RowProblem, Sample, Turn

OPEN = "?"
"""In place of an answer that is still to be written; no model sees it."""
_OPEN_TURN = {"role": "assistant", "content": OPEN}


def rows_to_answer(path: Path, prompt: str | None, allow_urls: bool) -> Iterator[Sample | BadRow]:
    """Yield the rows of a data file, of a folder of pictures or of one picture, in their order, read as they are asked.

    `prompt` is the question of rows and pictures that have none.

    Raises:
        VlmtuneError: there is nothing to read.
    """
    if pictures := pictures_in(path):
        for where, picture in pictures:
            yield Sample((Turn("user", (ImageRef(path=str(picture)), prompt or "")), Turn("assistant", (OPEN,))), where)
        return
    check_file(path)
    rules = ImageRules(str(path.absolute().parent), allow_urls)
    beginning = f"{path.name}:" if path.suffix.lower() == ".jsonl" else f"{path.name} row "
    for number, row in read_rows(Piece(path)):
        where = f"{beginning}{number}"
        try:
            if isinstance(row, RowProblem):
                raise row
            yield parse_row(open_row(row, prompt), where, rules, number).sample
        except RowProblem as problem:
            yield BadRow(where, problem.problem, problem.hint, number)


def open_row(row: object, prompt: str | None) -> object:
    """Return a row with an answer that is still open in place of none, and a question in place of none.

    Raises:
        RowProblem: nothing is asked.
    """
    if not isinstance(row, dict):
        return row
    filled = {key: value for key, value in row.items() if value not in (None, "", [])}
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


def _open_turns(turns: list) -> list:
    last = turns[-1]
    speaks = last.get("role") or last.get("from") if isinstance(last, dict) else None
    return turns if speaks in ("assistant", "gpt", "function_call", "tool_call") else [*turns, _OPEN_TURN]
