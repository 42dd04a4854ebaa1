"""A conversation taken apart: its shape as a short string, and its texts and images in order.

Rows of one shape differ in their texts and images alone: that is what a table of rows holds and what a chat template is
asked by.
"""

import re
from collections.abc import Iterable
from itertools import repeat
from typing import NamedTuple

from vlmtune.data.types import ImageRef, Role, Sample, Turn

ROLES: dict[str, Role] = {"S": "system", "U": "user", "A": "assistant", "T": "tool", "N": "assistant"}
NOT_LEARNED = "N"
LETTERS: dict[Role, str] = {"system": "S", "user": "U", "assistant": "A", "tool": "T"}
TEXT, PATH, URL, DATA, MORE = "tpudx"
_LETTERS_OF_TURN = re.compile("[A-Z][a-z]*")


class Layout(NamedTuple):
    """One row: `UptAt` is a user's image file and text, then an assistant's text."""

    shape: str
    """A capital letter for each turn, a small one for each of its parts; an `x` is JSON for the template: behind the
    letter of a turn what its message holds besides, before all turns the tools."""
    texts: Iterable[str]
    refs: Iterable[str]
    """Paths and addresses."""
    blobs: Iterable[bytes]
    """Embedded images."""
    accepted: Iterable[str] = ()
    """As in `Sample`."""


def laid_out(sample: Sample) -> Layout:
    """Return a sample taken apart; its place in the file is left out."""
    letters: list[str] = []
    texts: list[str] = []
    refs: list[str] = []
    blobs: list[bytes] = []
    if sample.tools:
        letters.append(MORE)
        texts.append(sample.tools)
    for turn in sample.turns:
        letters.append(LETTERS[turn.role] if turn.is_learned else NOT_LEARNED)
        if turn.more:
            letters.append(MORE)
            texts.append(turn.more)
        for part in turn.parts:
            if isinstance(part, str):
                letters.append(TEXT)
                texts.append(part)
            elif part.data is not None:
                letters.append(DATA)
                blobs.append(part.data)
            else:
                letters.append(URL if part.url is not None else PATH)
                refs.append(part.url or part.path or "")
    return Layout("".join(letters), texts, refs, blobs, sample.accepted)


def assembled(layout: Layout, where: str, number: int = 0) -> Sample:
    """Return the sample that was taken apart."""
    texts, refs, blobs = map(iter, layout[1:4])
    made = {
        TEXT: lambda: next(texts),
        PATH: lambda: ImageRef(path=next(refs)),
        URL: lambda: ImageRef(url=next(refs)),
        DATA: lambda: ImageRef(data=next(blobs)),
    }
    turns: list[Turn] = []
    tools = next(texts) if layout.shape[:1] == MORE else ""
    for letters in _LETTERS_OF_TURN.findall(layout.shape):
        more = next(texts) if letters[1:2] == MORE else ""
        parts = tuple(made[letter]() for letter in letters[1:] if letter != MORE)
        turns.append(Turn(ROLES[letters[0]], parts, letters[0] != NOT_LEARNED, more))
    return Sample(tuple(turns), where, number, tools, tuple(layout.accepted))


def without_images(shape: str, texts: Iterable[str], where: str) -> Sample:
    """Return a sample of this shape whose images are names only: for what looks at texts and places of images."""
    return assembled(Layout(shape.replace(URL, PATH).replace(DATA, PATH), texts, repeat("an image"), ()), where)


def num_images(shape: str) -> int:
    """Return how many images a row of this shape has."""
    return shape.count(PATH) + shape.count(URL) + shape.count(DATA)
