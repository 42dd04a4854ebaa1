"""The column `answers`: every answer that is accepted, as texts (DocVQA, TextVQA) or as objects (VQAv2)."""

import math

from vlmtune.data.reading.image_refs import is_utf8
from vlmtune.data.reading.unread import refuse_mark
from vlmtune.data.types import RowProblem, kind_of

COLUMN = "answers"
HINT = 'a right row: {"image": "photos/1.jpg", "question": "What is this?", "answers": ["A cat.", "a cat"]}'


def accepted_answers(value: object) -> list[str]:
    """Return the texts of the column, each once, in their order.

    Raises:
        RowProblem: it is no list of texts, or holds none.
    """
    if not isinstance(value, list):
        raise RowProblem(f"{COLUMN} is {kind_of(value)} where a list of strings is expected", HINT)
    texts = dict.fromkeys(_text(one, number) for number, one in enumerate(value, 1))
    found = [text for text in texts if text.strip()]
    if not found:
        raise RowProblem(f"{COLUMN} holds no text", HINT)
    for text in found:
        refuse_mark(text, COLUMN, "assistant", has_objects=False)
    return found


def _text(one: object, number: int) -> str:
    text = one.get("answer") if isinstance(one, dict) else one
    if isinstance(text, int | float) and not isinstance(text, bool) and math.isfinite(text):
        text = str(text)
    if not isinstance(text, str):
        raise RowProblem(f"{COLUMN}, part {number} is {kind_of(one)} where a string is expected", HINT)
    if not is_utf8(text):
        raise RowProblem(f"{COLUMN}, part {number} holds a broken character", "write the text as UTF-8")
    return text
