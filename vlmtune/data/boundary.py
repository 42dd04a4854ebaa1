"""Where a prompt ends in tokens: a model is asked with a prompt's tokens, so the row it learns from begins with these.

A tokenizer may join the end of a prompt with the beginning of its answer, such as two line ends or `:` and `)`. Such a
row is put together from prompt and answer, each in tokens of its own: as when the model is asked, and writes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from transformers import ProcessorMixin

from vlmtune.errors import VlmtuneError
from vlmtune.models.processor import THINKING, ask_and_answer, plain_ids

HEAD = re.compile(r"\s*[^\w\s]{0,4}\w?")
"""The characters of an answer that a tokenizer may join with those before it."""
Span = tuple[int, int]


@dataclass(frozen=True)
class Apart:
    """The last answer of a row, in tokens of its own."""

    ids: list[int]
    num_more_tokens: int
    """How many more the row has than in one piece."""


def answer_apart(text: str, answers: Sequence[Span], processor: ProcessorMixin, where: str) -> Apart | None:
    """Return the last answer where the tokenizer would join it with its prompt; None where it does not.

    Args:
        text: the row as the chat template writes it.
        answers: where each answer begins, and where what comes after it does.
        processor: the one whose tokenizer the model has.
        where: the row, for errors.

    Raises:
        VlmtuneError: an earlier answer is joined with its prompt, which later turns are asked with.
    """
    begins = [begin for begin, _ in answers]
    whole = plain_ids(processor, text)
    prompts = [plain_ids(processor, text[:begin]) for begin in begins]
    for number, (prompt, longer) in enumerate(pairwise(prompts), 1):
        if longer[: len(prompt)] != prompt:
            raise VlmtuneError(
                f"{where}: the tokenizer joins the beginning of answer {number} with the question before it, "
                "which no model that is asked can write",
                "remove blanks at the beginning of that answer, or split the row into rows with one answer each",
            )
    if whole[: len(prompts[-1])] == prompts[-1]:
        return None
    ids = plain_ids(processor, text[begins[-1] :])
    return Apart(ids, len(prompts[-1]) + len(ids) - len(whole))


def rewritten(where: str, turn_number: int, is_kept: bool) -> VlmtuneError:
    """Return why a turn cannot be trained: before it the row is not what the model is asked with.

    `is_kept`: the turns before it are written as they are asked with; it is the asking that differs.
    """
    if is_kept:
        return VlmtuneError(
            f"{where}: the chat template asks for an answer in other words than it writes before one, "
            "so a model trained on this row would not know the question",
            f"try data.chat_template_kwargs.{THINKING}: true or false, or correct the model's chat_template.jinja",
        )
    return VlmtuneError(
        f"{where}: the chat template rewrites earlier turns, so turn {turn_number} cannot be trained",
        "split the conversation into rows with one answer each",
    )


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
