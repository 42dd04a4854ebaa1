"""A conversation taken apart: its shape as a short string, and its texts and images in order.

Rows of one shape differ in their texts and images alone: that is what a table of rows holds and what a chat template is
asked by.
"""

from collections.abc import Iterable
from itertools import repeat
from typing import NamedTuple

from vlmtune.data.types import ImageRef, Role, Sample, Turn

ROLES: dict[str, Role] = {"S": "system", "U": "user", "A": "assistant"}
LETTERS = {role: letter for letter, role in ROLES.items()}
TEXT, PATH, URL, DATA = "tpud"


class Layout(NamedTuple):
    """One row: `UptAt` is a user's image file and text, then an assistant's text."""

    shape: str
    """A capital letter for each turn, a small one for each of its parts."""
    texts: Iterable[str]
    refs: Iterable[str]
    """Paths and addresses."""
    blobs: Iterable[bytes]
    """Embedded images."""


def laid_out(sample: Sample) -> Layout:
    """Return a sample taken apart; its place in the file is left out."""
    letters: list[str] = []
    texts: list[str] = []
    refs: list[str] = []
    blobs: list[bytes] = []
    for turn in sample.turns:
        letters.append(LETTERS[turn.role])
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
    return Layout("".join(letters), texts, refs, blobs)


def assembled(layout: Layout, where: str, number: int = 0) -> Sample:
    """Return the sample that was taken apart."""
    texts, refs, blobs = map(iter, layout[1:])
    made = {
        TEXT: lambda: next(texts),
        PATH: lambda: ImageRef(path=next(refs)),
        URL: lambda: ImageRef(url=next(refs)),
        DATA: lambda: ImageRef(data=next(blobs)),
    }
    turns: list[tuple[Role, list[str | ImageRef]]] = []
    for letter in layout.shape:
        if letter in ROLES:
            turns.append((ROLES[letter], []))
        else:
            turns[-1][1].append(made[letter]())
    return Sample(tuple(Turn(role, tuple(parts)) for role, parts in turns), where, number)


def without_images(shape: str, texts: Iterable[str], where: str) -> Sample:
    """Return a sample of this shape whose images are names only: for what looks at texts and places of images."""
    return assembled(Layout(shape.replace(URL, PATH).replace(DATA, PATH), texts, repeat("an image"), ()), where)


def num_images(shape: str) -> int:
    """Return how many images a row of this shape has."""
    return shape.count(PATH) + shape.count(URL) + shape.count(DATA)
