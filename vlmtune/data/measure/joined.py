"""Tokens of rows that are put together from prompt and answer: found by the first characters of their answers."""

import re
from collections.abc import Callable, Sequence
from functools import cache

from transformers import ProcessorMixin

from vlmtune.data.boundary import answer_apart
from vlmtune.data.encode import render
from vlmtune.data.table.layout import MORE, TEXT, without_images
from vlmtune.families.base import Family
from vlmtune.models.processor import ask_and_answer, plain_ids

HEAD = re.compile(r"\s*[^\w\s]{0,4}\w?")
"""The characters of an answer that a tokenizer may join with those before it."""


def joined_tokens(processor: ProcessorMixin, family: Family) -> Callable[[str, Sequence[str], str], int]:
    """Return what gives the tokens that a row has more than in one piece, or raises why it cannot be learned."""
    if family.one_answer:
        return lambda shape, texts, where: 0
    joins, places = Joins(processor), cache(_answer_places)

    def more_of(shape: str, texts: Sequence[str], where: str) -> int:
        if MORE not in shape and not any(joins.may_join(texts[place]) for place in places(shape)):
            return 0
        text, answers = render(without_images(shape, texts, where), processor)
        apart = answer_apart(text, answers, processor, where) if answers else None
        return apart.num_more_tokens if apart else 0

    return more_of


def _answer_places(shape: str) -> list[int]:
    """Return which texts of a row without more than texts and images begin an answer."""
    turns = [found.start() for found in re.finditer("A", shape)]
    return [shape[:start].count(TEXT) for start in turns if TEXT in shape[start:]]


class Joins:
    """Tells which answers a tokenizer may join with their prompts by their first characters, without rendering them."""

    def __init__(self, processor: ProcessorMixin) -> None:
        self._processor = processor
        self._prompt, self._between = ask_and_answer(processor)
        self._ids = plain_ids(processor, self._prompt)
        self._known: dict[str, bool] = {}

    def may_join(self, answer: str) -> bool:
        """Return whether the row must be looked at as a whole."""
        head = HEAD.match(answer)[0]
        if head not in self._known:
            ids = plain_ids(self._processor, f"{self._prompt}{self._between}{head}")
            self._known[head] = ids[: len(self._ids)] != self._ids
        return self._known[head]
