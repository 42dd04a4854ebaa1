"""What one row of a data set is, whatever file and shape it came from. Imports nothing heavy."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where one picture comes from; exactly one field is set."""

    path: str | None = None
    """Absolute path of an image file."""
    data: bytes | None = field(default=None, repr=False)
    """The encoded image itself, embedded in the row (base64 in JSON, binary in Parquet)."""
    url: str | None = None
    """http(s) address; only with `data.allow_urls`."""

    @property
    def name(self) -> str:
        """How messages call this picture."""
        if self.data is not None:
            return f"embedded image ({len(self.data):,} bytes)"
        return self.path or self.url or "image"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation: texts and images in order."""

    role: Role
    parts: tuple[str | ImageRef, ...]
    is_learned: bool = True
    """Of an assistant turn: whether its tokens are learned."""
    more: str = ""
    """What the message holds besides, as JSON for its chat template: `{"tool_calls": [...]}`."""

    @property
    def is_answer(self) -> bool:
        """Whether tokens of this turn are learned."""
        return self.role == "assistant" and self.is_learned

    @property
    def texts(self) -> list[str]:
        """The texts of this turn."""
        return [part for part in self.parts if isinstance(part, str)]

    @property
    def text(self) -> str:
        """The texts of this turn, joined."""
        return "".join(self.texts)


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation that ends with an assistant turn, and where it was read."""

    turns: tuple[Turn, ...]
    where: str
    """`train.jsonl:12` (file and line), or `train.parquet row 12` (counted from 1) where lines mean nothing."""
    number: int = field(default=0, compare=False, repr=False)
    """The 12 of `where`: the order of rows, whatever their file is called."""
    tools: str = ""
    """Definitions of the tools that the model may call, as JSON for its chat template."""
    accepted: tuple[str, ...] = ()
    """Other answers that are as right as the last turn's, for metrics; nothing learns them."""

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """All pictures, in the order in which the model meets them."""
        return tuple([part for turn in self.turns for part in turn.parts if isinstance(part, ImageRef)])

    @property
    def prompt(self) -> "Sample":
        """This sample without its last assistant turn."""
        return replace(self, turns=self.turns[:-1])

    @property
    def answer(self) -> str:
        """Text of the last assistant turn."""
        return self.turns[-1].text

    @property
    def has_more(self) -> bool:
        """Whether there is more to render than texts and images of system, user and assistant."""
        return bool(self.tools) or any(turn.more or turn.role == "tool" for turn in self.turns)

    def messages(self) -> list[dict[str, Any]]:
        """The conversation in transformers' chat format; images are bare placeholders."""
        return [
            {
                "role": turn.role,
                "content": [
                    {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                    for part in turn.parts
                ],
                **(json.loads(turn.more) if turn.more else {}),
            }
            for turn in self.turns
        ]


class SamplesOnDisk(Sequence[Sample]):
    """Samples of a large file; `vlmtune.data.table.rows` has them, and this name for them costs nothing to import."""

    num_images: int
    """Images of all of them."""
    num_with_boxes: int
    """Those whose texts hold boxes that are still to be written."""

    numbers: list[int]
    """The number of each among all files."""

    def images(self) -> Iterator[list[str | bytes]]:
        """Yield what tells the images of each row from others: paths, addresses, digests of embedded ones."""
        raise NotImplementedError

    def at(self, places: Sequence[int]) -> "SamplesOnDisk":
        """Return the rows at some places of these, rising."""
        raise NotImplementedError

    def with_lists(self) -> "SamplesOnDisk":
        """Those with lists of four numbers in their texts, which may be boxes."""
        raise NotImplementedError

    def written(self, writer: "Callable[[Sample], Sample]") -> "SamplesOnDisk":
        """These rows as `writer` gives them."""
        raise NotImplementedError


def num_images(samples: Sequence[Sample]) -> int:
    """Images of all rows."""
    return samples.num_images if isinstance(samples, SamplesOnDisk) else sum(len(one.images) for one in samples)


def numbers_of(samples: Sequence[Sample]) -> list[int]:
    """The number of each row among all files."""
    return samples.numbers if isinstance(samples, SamplesOnDisk) else [sample.number for sample in samples]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, why, and what a right one looks like."""

    where: str
    problem: str
    hint: str | None
    number: int = field(default=0, compare=False, repr=False)


@dataclass(frozen=True)
class Rows:
    """One data file, read: usable rows, unusable rows, and what was decided on the user's behalf."""

    samples: Sequence[Sample]
    """A list, or of a large file `SamplesOnDisk`."""
    bad_rows: list[BadRow]
    notes: tuple[str, ...]

    @property
    def num_images(self) -> int:
        """Images of the usable rows."""
        return num_images(self.samples)


class RowProblem(Exception):
    """Why one row cannot be used; `read_samples` turns it into a `BadRow`."""

    def __init__(self, problem: str, hint: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


def kind_of(value: object) -> str:
    """The JSON name of a value's type, for messages: `a string`, `a list`, ..."""
    names = {bool: "true/false", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def shortened(text: str, max_chars: int = 80) -> str:
    """`text` quoted for a message, cut when long."""
    return repr(text if len(text) <= max_chars else text[: max_chars - 3] + "...")


def count(number: int, what: str) -> str:
    """`1 row`, `1,200 rows`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
