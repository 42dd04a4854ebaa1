"""Text tokens of many rows: each is rendered and tokenised once; those of a table are kept beside it."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from vlmtune.data.boxes.writing import BoxWriter
from vlmtune.data.encode import render
from vlmtune.data.fit.misfit import holds_mark, looks_at_rows, misfit
from vlmtune.data.measure.joined import joined_tokens
from vlmtune.data.measure.rendering import Renderer
from vlmtune.data.progress import Advance, Progress
from vlmtune.data.table.layout import TEXT, laid_out, num_images, without_images
from vlmtune.data.types import BadRow, Sample, SamplesOnDisk
from vlmtune.errors import VlmtuneError
from vlmtune.families.base import Family
from vlmtune.files import code_sha256
from vlmtune.models.processor import image_marks, special_token_ids, turn_end_id

ROWS_AT_ONCE = 1000
TEXTS_AT_ONCE = 256
"""An encoded text takes some 100 bytes a token until it is counted."""
UNKNOWN, REFUSED = -1, -2
"""In place of a number of tokens."""
LIBRARIES = ("transformers", "tokenizers", "jinja2")
PROBE = without_images("UptAt", ("What is this?", "Grey."), "probe")
Batch = tuple[Sequence[str], Sequence[Sequence[str]], Sequence[str]]
"""Shapes, texts and names of some rows."""


def text_tokens(
    samples: Sequence[Sample], processor: ProcessorMixin, family: Family, progress: Progress | None = None
) -> tuple[np.ndarray, list[BadRow]]:
    """Return the text tokens of each row, [N], and the rows that the model cannot take, whose tokens are `REFUSED`.

    `progress` is told of long work in place of who was told of reading.
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
        shapes, texts, *_ = zip(*map(laid_out, some), strict=True)
        yield shapes, texts, [sample.where for sample in some]


def _kept_tokens(
    samples: SamplesOnDisk, processor: ProcessorMixin, family: Family, progress: Progress | None
) -> tuple[np.ndarray, list[BadRow]]:
    """Return the text tokens of a table's rows; those that were not counted before are counted and kept.

    Why a row is refused is not kept: it is asked for again.
    """
    from vlmtune.data.table.kept import keep_array, kept_array
    from vlmtune.data.table.rows import TableRows

    assert isinstance(samples, TableRows)
    path = samples.folder / f"tokens-{_identity(processor, family, samples.writer)}.npy"
    known = kept_array(path, np.full(len(samples.facts), UNKNOWN, np.int32))
    missing = samples.chosen(known[samples.rows] < 0)
    bad_rows: list[BadRow] = []
    if len(missing):
        known = known.copy()
        with (progress or samples.progress)("measuring rows", len(missing)) as advance, _tokenizer_threads():
            known[missing.rows], bad_rows = _counted(missing.batches(), processor, family, advance)
        keep_array(path, known)
    return known[samples.rows], bad_rows


def _identity(processor: ProcessorMixin, family: Family, writer: BoxWriter | None) -> str:
    """Return a digest of all that decides how rows are rendered, tokenised and refused.

    A rendered row is a part of it: some templates write the date.
    """
    tokenizers = [processor.tokenizer, getattr(processor, "qformer_tokenizer", processor.tokenizer)]
    decided_by = [
        *map(_state, tokenizers),
        [processor.chat_template, image_marks(processor), _shown(processor, family)],
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


def _counted(
    batches: Iterator[Batch], processor: ProcessorMixin, family: Family, advance: Advance
) -> tuple[np.ndarray, list[BadRow]]:
    text_of, count = _writer(processor, family), _counter(processor.tokenizer)
    more_of = joined_tokens(processor, family)
    counts, bad_rows = [np.empty(0, np.int32)], []
    for shapes, texts, names in batches:
        written, fitting, more = [], [], []
        for place, row in enumerate(zip(shapes, texts, names, strict=True)):
            try:
                text, joined = text_of(*row), more_of(*row)
                written.append(text)
                more.append(joined)
                fitting.append(place)
            except VlmtuneError as problem:
                bad_rows.append(as_bad_row(problem, row[-1]))
        marks = [0 if family.one_answer else num_images(shapes[place]) for place in fitting]  # the template writes them
        tokens = np.full(len(names), REFUSED, np.int32)
        tokens[fitting] = np.array(count(written), np.int32) - np.array(marks, np.int32) + np.array(more, np.int32)
        counts.append(tokens)
        advance(len(names))
    return np.concatenate(counts), bad_rows


def as_bad_row(problem: VlmtuneError, where: str) -> BadRow:
    """Return the problem of the row of this name."""
    number = re.search("[0-9]*$", where)
    return BadRow(where, problem.message.removeprefix(f"{where}: "), problem.hint, int(number[0] or 0))


def _writer(processor: ProcessorMixin, family: Family) -> Callable[[str, Sequence[str], str], str]:
    """Return what gives the text of a row by its shape, texts and name, or raises why the model cannot take it."""
    renderer, looks = None if family.one_answer else Renderer(processor), looks_at_rows(family)
    marks, token = image_marks(processor), _token_of_image(processor, family)
    ends, ended = [] if family.one_answer else _end_tokens(processor), dict[str, bool]()

    def text_of(shape: str, texts: Sequence[str], where: str) -> str:
        if (looks or holds_mark("".join(texts), marks)) and (
            problem := misfit(without_images(shape, texts, where), processor, family)
        ):
            raise problem
        if renderer:
            text = renderer(shape, texts, where)
            if token and text.count(token) != num_images(shape):
                wrong = f"{text.count(token)} images where the row has {num_images(shape)}"
                raise VlmtuneError(f"{where}: the chat template writes {wrong}", "train a model whose template has all")
            if shape not in ended:
                ended[shape] = _ends_answers(without_images(shape, texts, where), processor, ends)
            if not ended[shape]:
                raise VlmtuneError(f"{where}: the chat template ends an answer without an end token")
            return text
        num_asking = shape[: shape.index("A")].count(TEXT)
        question, answer = "".join(texts[:num_asking]), "".join(texts[num_asking:])
        return f"{question_text(question, family)}{answer}{processor.tokenizer.eos_token}"

    return text_of


def _token_of_image(processor: ProcessorMixin, family: Family) -> str | None:
    """Return what the chat template writes once for each image; None where nobody can tell."""
    token = str(getattr(processor, "image_token", None) or "")
    if not token or family.one_answer:
        return None
    try:
        return token if render(PROBE, processor)[0].count(token) == 1 else None
    except VlmtuneError:
        return None


def _end_tokens(processor: ProcessorMixin) -> list[str]:
    """Return all tokens that may end an answer, the usual one first."""
    usual = turn_end_id(processor)
    special = sorted(special_token_ids(processor), key=lambda token: token != usual)
    return processor.tokenizer.convert_ids_to_tokens(special)


def _ends_answers(sample: Sample, processor: ProcessorMixin, ends: list[str]) -> bool:
    text, answers = render(sample, processor)
    return all(any(end in text[start:stop] for end in ends) for start, stop in answers)


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
