"""Many rows rendered: a chat template is asked for the first rows of each shape, the others are put together.

A template may do anything with a text. That it writes the texts of a shape as they are is shown, not believed: it must
do so with marked texts that begin and end with blanks, with long and short ones, with digits and capitals, and with
every string that its source names, which it might look for. Rows that hold a string which it does look for, and rows of
shapes where it does something else, are rendered one by one.
"""

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import jinja2
from transformers import ProcessorMixin

from vlmtune.data.encode import render
from vlmtune.data.table.layout import MORE, TEXT, without_images
from vlmtune.errors import VlmtuneError

COMPARED = 32
"""Rows of a shape that must be as the template has written them."""
BLANKS = " \u2003\n\t"
MARK = "\ue000{}\ue001"
_MARKS = re.compile("\ue000([0-9]+)\ue001")
Trial = Callable[[str], str]
"""Mark -> a text with it."""
Piece = str | tuple[int, bool, bool]
"""What a template writes itself; or of a text its number, whether it loses blanks before it, and behind it."""
TRIALS: tuple[Trial, ...] = (
    lambda mark: mark,
    lambda mark: f"\n{mark}\n",
    lambda mark: f"A \"quoted\" 'text'\r\nof {{{{ lines }}}}, <b>&amp;</b> {{% if %}} \\n é %s {mark}",
    lambda mark: f"{mark} word" * 1000,
    lambda mark: "x",
    lambda mark: "7",
    lambda mark: "YES",
)
"""Texts to be written as they are, but for blanks around them."""
PLACES: tuple[Callable[[str, str], str], ...] = (
    lambda mark, word: f"{mark} {word} {mark}",
    lambda mark, word: f"{word}{mark}",
    lambda mark, word: f"{mark}{word}",
    lambda mark, word: word,
)
"""Where a template may look for a word."""


@dataclass(frozen=True)
class Form:
    """How a template writes the rows of one shape."""

    pieces: tuple[Piece, ...]
    minded: tuple[str, ...] = ()
    """Strings that change how a text is written."""

    def filled(self, texts: Sequence[str]) -> str | None:
        """Return the rendered row; None where the template must be asked."""
        if self.minded and any(word in text for word in self.minded for text in texts):
            return None
        written = []
        for piece in self.pieces:
            if not isinstance(piece, str):
                number, loses_left, loses_right = piece
                piece = texts[number]
                piece = piece.lstrip() if loses_left else piece
                piece = piece.rstrip() if loses_right else piece
                if not piece:  # nothing but blanks: those of its neighbours may be lost too
                    return None
            written.append(piece)
        return "".join(written)


class Renderer:
    """Renders rows by the chat template of one processor."""

    def __init__(self, processor: ProcessorMixin) -> None:
        self.processor = processor
        self._words, self._at_ends = words_of(processor.chat_template)
        self._num_trials = COMPARED + len(TRIALS) + len(PLACES) * len(self._words)
        self._forms: dict[str, Form | None] = {}
        self._num_rendered = Counter[str]()
        self._compared: dict[str, list[tuple[Sequence[str], str]]] = {}

    def __call__(self, shape: str, texts: Sequence[str], where: str) -> str:
        """Return the text of a row of this shape, as `render` does; raises as it does."""
        if MORE in shape:  # what templates are given besides is no text that they write as it is
            return render(without_images(shape, texts, where), self.processor)[0]
        form = self._forms.get(shape)
        text = form.filled(texts) if form else None
        if text is None:
            text = render(without_images(shape, texts, where), self.processor)[0]
            if shape not in self._forms:
                self._look_into(shape, texts, text)
        return text

    def _look_into(self, shape: str, texts: Sequence[str], text: str) -> None:
        """Learn how rows of this shape are written, once as many were rendered as that takes."""
        self._num_rendered[shape] += 1
        compared = self._compared.setdefault(shape, [])
        if len(compared) < COMPARED:
            compared.append((texts, text))
        if self._num_rendered[shape] == self._num_trials:
            form = self._form(shape)
            right = form and all(form.filled(texts) in (None, text) for texts, text in compared)
            self._forms[shape] = form if right else None
            del self._compared[shape]

    def _form(self, shape: str) -> Form | None:
        """Return how rows of this shape are written; None where it cannot be shown."""
        marks = [MARK.format(number) for number in range(shape.count(TEXT))]

        def rendered(trial: Trial) -> tuple[list[str], str]:
            texts = [trial(mark) for mark in marks]
            return texts, render(without_images(shape, texts, ""), self.processor)[0]

        def is_written(form: Form, trials: Iterable[Trial]) -> bool:
            try:
                return all(form.filled(texts) in (None, text) for texts, text in map(rendered, trials))
            except VlmtuneError:
                return False

        try:
            form = Form(_pieces(rendered(lambda mark: f"{BLANKS}{mark}{BLANKS}")[1]))
        except VlmtuneError:
            return None
        if not is_written(form, TRIALS):
            return None
        others = [word for word in self._words if word not in self._at_ends]
        minded = _minded(others, lambda word: not is_written(form, _with(word)))
        # A beginning and an end may be asked for together, so that neither shows alone.
        return Form(form.pieces, (*self._at_ends, *minded))


def _pieces(text: str) -> tuple[Piece, ...]:
    """Return what a template made of marks with blanks around them."""
    before, *rest = _MARKS.split(text)
    pieces: list[Piece] = []
    for number, after in zip(rest[::2], rest[1::2], strict=True):
        keeps_left, keeps_right = before.endswith(BLANKS), after.startswith(BLANKS)
        pieces += [before.removesuffix(BLANKS), (int(number), not keeps_left, not keeps_right)]
        before = after.removeprefix(BLANKS)
    return (*pieces, before)


def words_of(template: str | dict[str, str]) -> tuple[list[str], list[str]]:
    """Return the strings that the source of a template names, and those of them that it looks for at a text's ends."""
    sources = template.values() if isinstance(template, dict) else [template]
    words, at_ends = {}, {}
    for source in sources:
        tokens = [(kind, value) for _, kind, value in jinja2.Environment().lex(source) if kind != "whitespace"]
        before = [("", "")] * 2 + tokens
        for (_, method), (kind, value) in zip(before, tokens, strict=False):
            if kind == "string" and (word := _value_of(value)):
                words[word] = None
                if method in ("startswith", "endswith"):
                    at_ends[word] = None
    return list(words), list(at_ends)


def _value_of(literal: str) -> str:
    try:
        return ast.literal_eval(literal)
    except (SyntaxError, ValueError):
        return literal[1:-1]


def _with(word: str) -> Iterable[Trial]:
    return (lambda mark, place=place: place(mark, word) for place in PLACES)


def _minded(words: list[str], minds: Callable[[str], bool]) -> Iterable[str]:
    """Yield strings such that a template minds no text without them."""
    rest = []
    for word in words:
        if minds(word):
            yield word
        else:
            rest.append(word)
    while rest and minds(" ".join(rest)):  # several together: each of the fewest is needed for it
        fewest = rest
        for word in rest:
            without = [other for other in fewest if other != word]
            fewest = without if minds(" ".join(without)) else fewest
        yield fewest[0]
        rest = [word for word in rest if word != fewest[0]]
