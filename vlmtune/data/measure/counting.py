"""Text tokens of many rows: each is rendered and tokenised once; those of a table are kept beside it."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from vlmtune.data.boundary import Joins, answer_apart
from vlmtune.data.boxes.writing import BoxWriter
from vlmtune.data.encode import looks_at_rows, misfit, render
from vlmtune.data.measure.rendering import Renderer
from vlmtune.data.progress import Advance, Progress
from vlmtune.data.table.layout import TEXT, laid_out, num_images, without_images
from vlmtune.data.types import Sample, SamplesOnDisk
from vlmtune.errors import VlmtuneError
from vlmtune.families.base import Family
from vlmtune.files import code_sha256

ROWS_AT_ONCE = 1000
TEXTS_AT_ONCE = 256
"""An encoded text takes some 100 bytes a token until it is counted."""
MAX_PROBLEMS = 50
UNKNOWN = -1
LIBRARIES = ("transformers", "tokenizers", "jinja2")
PROBE = without_images("UptAt", ("What is this?", "Grey."), "probe")
Batch = tuple[Sequence[str], Sequence[Sequence[str]], Sequence[str]]
"""Shapes, texts and names of some rows."""


def text_tokens(
    samples: Sequence[Sample], processor: ProcessorMixin, family: Family, progress: Progress | None = None
) -> np.ndarray:
    """Return the text tokens of each row, [N]; `progress` is told of long work in place of who was told of reading.

    Raises:
        VlmtuneError: rows that the model cannot take, all of them named.
    """
    if isinstance(samples, SamplesOnDisk):
        return _kept_tokens(samples, processor, family, progress)
    return _counted(_batches(samples), processor, family, advance=lambda amount: None)


def question_text(text: str, family: Family) -> str:
    """Return a question as a family without chat template writes it; the tokenizer puts its start token before it."""
    return text.strip() + "\n" * family.prefix_lm


def _batches(samples: Sequence[Sample]) -> Iterator[Batch]:
    for start in range(0, len(samples), ROWS_AT_ONCE):
        some = samples[start : start + ROWS_AT_ONCE]
        shapes, texts, _, _ = zip(*map(laid_out, some), strict=True)
        yield shapes, texts, [sample.where for sample in some]


def _kept_tokens(
    samples: SamplesOnDisk, processor: ProcessorMixin, family: Family, progress: Progress | None
) -> np.ndarray:
    """Return the text tokens of a table's rows; those that were not counted before are counted and kept."""
    from vlmtune.data.table.kept import keep_array, kept_array
    from vlmtune.data.table.rows import TableRows

    assert isinstance(samples, TableRows)
    path = samples.folder / f"tokens-{_identity(processor, family, samples.writer)}.npy"
    known = kept_array(path, np.full(len(samples.facts), UNKNOWN, np.int32))
    missing = samples.chosen(known[samples.rows] == UNKNOWN)
    if len(missing):
        known = known.copy()
        with (progress or samples.progress)("measuring rows", len(missing)) as advance, _tokenizer_threads():
            known[missing.rows] = _counted(missing.batches(), processor, family, advance)
        keep_array(path, known)
    return known[samples.rows]


def _identity(processor: ProcessorMixin, family: Family, writer: BoxWriter | None) -> str:
    """Return a digest of all that decides how rows are rendered, tokenised and refused.

    A rendered row is a part of it: some templates write the date.
    """
    tokenizers = [processor.tokenizer, getattr(processor, "qformer_tokenizer", processor.tokenizer)]
    decided_by = [
        *map(_state, tokenizers),
        [processor.chat_template, getattr(processor, "image_marks", ()), _shown(processor, family)],
        [writer and writer.identity],
        [family.name, family.one_answer, family.prefix_lm, family.qformer, family.needs_image],
        [code_sha256(Path(__file__).parent), *map(version, LIBRARIES)],
    ]
    return hashlib.sha256(json.dumps(decided_by, default=str).encode()).hexdigest()[:16]


def _state(tokenizer: PreTrainedTokenizerBase) -> list:
    """Return what decides how a tokenizer counts, padding and cutting aside, which each call sets anew."""
    tokenizer("")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str()
    return [type(tokenizer).__name__, tokenizer.model_max_length, tokenizer.special_tokens_map, vocabulary]


def _shown(processor: ProcessorMixin, family: Family) -> str:
    try:
        return "" if family.one_answer else render(PROBE, processor)[0]
    except VlmtuneError as error:
        return error.message


@contextmanager
def _tokenizer_threads() -> Iterator[None]:
    """Let the tokenizer use all cores for a while.

    `prepare_environment` forbids it because its threads do not live on in forked processes, which would wait for them.
    The variable is read at each call: processes that are forked later read that it is forbidden, and start none.
    """
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        os.environ["TOKENIZERS_PARALLELISM"] = before or "false"


def _counted(batches: Iterator[Batch], processor: ProcessorMixin, family: Family, advance: Advance) -> np.ndarray:
    text_of, count = _writer(processor, family), _counter(processor.tokenizer)
    more_of = _joined(processor, family)
    counts, problems, num_rows, num_problems = [np.empty(0, np.int32)], [], 0, 0
    for shapes, texts, names in batches:
        written, more = [], []
        for row in zip(shapes, texts, names, strict=True):
            try:
                written.append(text_of(*row))
                more.append(more_of(*row))
            except VlmtuneError as problem:
                num_problems += 1
                problems += [problem] * (num_problems <= MAX_PROBLEMS)
        if not problems:
            marks = [0 if family.one_answer else num_images(shape) for shape in shapes]  # one that the template writes
            counts.append(np.subtract(count(written), marks, dtype=np.int32) + np.array(more, np.int32))
        num_rows += len(names)
        advance(len(names))
    if problems:
        raise misfits(problems, num_problems, num_rows)
    return np.concatenate(counts)


def _writer(processor: ProcessorMixin, family: Family) -> Callable[[str, Sequence[str], str], str]:
    """Return what gives the text of a row by its shape, texts and name, or raises why the model cannot take it."""
    renderer, looks = None if family.one_answer else Renderer(processor), looks_at_rows(processor, family)

    def text_of(shape: str, texts: Sequence[str], where: str) -> str:
        if looks and (problem := misfit(without_images(shape, texts, where), processor, family)):
            raise problem
        if renderer:
            return renderer(shape, texts, where)
        num_asking = shape[: shape.index("A")].count(TEXT)
        question, answer = "".join(texts[:num_asking]), "".join(texts[num_asking:])
        return f"{question_text(question, family)}{answer}{processor.tokenizer.eos_token}"

    return text_of


def _joined(processor: ProcessorMixin, family: Family) -> Callable[[str, Sequence[str], str], int]:
    """Return what gives the tokens that a row has more than in one piece, or raises why it cannot be learned."""
    if family.one_answer:
        return lambda shape, texts, where: 0
    joins, places = Joins(processor), cache(_answer_places)

    def more_of(shape: str, texts: Sequence[str], where: str) -> int:
        if not any(joins.may_join(texts[place]) for place in places(shape)):
            return 0
        text, answers = render(without_images(shape, texts, where), processor)
        apart = answer_apart(text, answers, processor, where)
        return apart.num_more_tokens if apart else 0

    return more_of


def _answer_places(shape: str) -> list[int]:
    """Return which texts of a row begin an answer."""
    turns = [found.start() for found in re.finditer("A", shape)]
    return [shape[:start].count(TEXT) for start in turns if TEXT in shape[start:]]


def _counter(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], list[int]]:
    """Return what counts the tokens of texts: the library's tokenizer makes lists of them all, its backend need not."""
    backend = getattr(tokenizer, "backend_tokenizer", None)

    def plainly(texts: list[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(texts)["input_ids"]]

    def fast(texts: list[str]) -> list[int]:
        return [len(encoding) for encoding in backend.encode_batch_fast(texts)]

    chosen: list[Callable[[list[str]], list[int]]] = []

    def count(texts: list[str]) -> list[int]:
        some = [texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(texts), TEXTS_AT_ONCE)]
        if some and not chosen:
            counts = plainly(some[0])
            chosen.append(fast if backend is not None and fast(some[0]) == counts else plainly)
        return [number for batch in some for number in chosen[0](batch)]

    return count


def misfits(problems: list[VlmtuneError], num_problems: int, num_rows: int) -> VlmtuneError:
    """Return the one error that names rows, all or the first of `num_problems`; each hint is given once."""
    if num_rows == 1:
        return problems[0]
    hints: set[str | None] = set()
    shown = []
    for problem in problems[:MAX_PROBLEMS]:
        shown.append(VlmtuneError(problem.message, None if problem.hint in hints else problem.hint))
        hints.add(problem.hint)
    return VlmtuneError(f"{num_problems} of {num_rows} rows do not fit the model", problems=tuple(shown))
