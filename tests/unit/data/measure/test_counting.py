"""Text tokens are counted once, kept beside the table, and are those of each row rendered and tokenised alone."""

import copy
import os
from datetime import datetime

import pytest
from PIL import Image
from tiny.rows import sample
from transformers.utils import chat_template_utils

from vlmtune.data import samples
from vlmtune.data.checked import with_images_checked
from vlmtune.data.encode import render
from vlmtune.data.measure import counting
from vlmtune.data.measure.counting import text_tokens
from vlmtune.data.samples import read_samples
from vlmtune.data.table import looks, make
from vlmtune.data.types import Sample, Turn
from vlmtune.errors import VlmtuneError


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """A function that reads the test's data file into a table, in this process."""
    for module in (make, looks):
        monkeypatch.setattr(module, "each", lambda work, tasks: map(work, tasks))
    monkeypatch.setattr(samples, "LARGE_BYTES", 0)
    monkeypatch.setattr(make, "PIECE_BYTES", 2000)
    path = tmp_path / "rows.jsonl"
    lines = [f'{{"question": "question {n}{"?" * (n % 7)}", "answer": "answer {n}"}}\n' for n in range(300)]
    lines[5] = '{"image": "gone.png", "question": "what?", "answer": "this"}\n'
    path.write_text("".join(lines))
    return lambda: with_images_checked(read_samples(path)).samples


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """How many rows were counted, each time."""
    numbers = []
    real = counting._counted

    def count(batches, *rest):
        tokens = real(batches, *rest)
        numbers.append(len(tokens))
        return tokens

    monkeypatch.setattr(counting, "_counted", count)
    return numbers


class LongAgo(datetime):
    """A clock that stands in another time."""

    @classmethod
    def now(cls) -> datetime:
        return datetime(802, 1, 1)


def alone(row: Sample, tiny) -> int:
    return len(tiny.processor.tokenizer(render(row, tiny.processor)[0])["input_ids"]) - len(row.images)


def test_tokens_of_a_table_are_those_of_its_rows(rows, models):
    tiny = models("llava")
    table = rows()
    assert text_tokens(table, tiny.processor, tiny.family).tolist() == [alone(row, tiny) for row in table]


def test_they_are_counted_once(rows, models, counted):
    tiny = models("llava")
    first = text_tokens(rows(), tiny.processor, tiny.family).tolist()
    tiny.processor.tokenizer(["short", "a longer text"], padding=True, truncation=True, max_length=5)
    assert text_tokens(rows(), tiny.processor, tiny.family).tolist() == first and counted == [299]


@pytest.mark.parametrize("change", ["template", "tokenizer", "family", "library", "code", "date"])
def test_what_decides_them_decides_whether_they_are_counted_anew(change, rows, models, counted, monkeypatch):
    tiny = models("llava")
    processor, family = copy.copy(tiny.processor), tiny.family
    if change == "date":
        processor.chat_template = "{{ strftime_now('%Y') }}" + processor.chat_template
    text_tokens(rows(), processor, family)
    if change == "template":
        processor.chat_template = "Hello! " + processor.chat_template
    elif change == "tokenizer":
        processor.tokenizer = copy.deepcopy(processor.tokenizer)
        processor.tokenizer.add_tokens(["question"])
    elif change == "family":
        family = models("smolvlm").family
    elif change == "library":
        monkeypatch.setattr(counting, "version", lambda library: "changed")
    elif change == "code":
        monkeypatch.setattr(counting, "code_sha256", lambda folder: "changed")
    else:
        monkeypatch.setattr(chat_template_utils, "datetime", LongAgo)
    tokens = text_tokens(rows(), processor, family)
    assert counted == [299, 299]
    changed = copy.copy(tiny)
    changed.processor = processor
    assert tokens.tolist() == [alone(row, changed) for row in rows()]


def test_a_repaired_row_is_counted_without_the_others(rows, models, counted, tmp_path):
    tiny = models("llava")
    text_tokens(rows(), tiny.processor, tiny.family)
    Image.new("RGB", (8, 8)).save(tmp_path / "gone.png")
    tokens = text_tokens(rows(), tiny.processor, tiny.family)
    assert counted == [299, 1] and len(tokens) == 300
    assert tokens[5] == alone(rows()[5], tiny)


def test_all_cores_count_and_processes_that_are_forked_later_are_told_not_to(rows, models, monkeypatch):
    tiny = models("llava")
    told = []
    real = counting._counted
    monkeypatch.setattr(
        counting, "_counted", lambda *rest: told.append(os.environ["TOKENIZERS_PARALLELISM"]) or real(*rest)
    )
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    text_tokens(rows(), tiny.processor, tiny.family)
    assert told == ["true"] and os.environ["TOKENIZERS_PARALLELISM"] == "false"


def test_a_tokenizer_whose_backend_counts_otherwise_is_asked_itself(models):
    tiny = models("llava")

    class Odd:
        backend_tokenizer = tiny.processor.tokenizer.backend_tokenizer

        def __call__(self, texts):
            return {"input_ids": [[0] * (len(text) + 5) for text in texts]}

    count = counting._counter(Odd())
    assert count([]) == []
    assert count(["four", "fifth"] * 200) == [9, 10] * 200


def test_every_row_that_the_template_refuses_is_named_before_anything_is_counted(models):
    tiny = models("llava")
    processor = copy.copy(tiny.processor)
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    processor.chat_template = refusal + processor.chat_template
    good = sample("what?", "this", where="rows.jsonl:1")
    bad = [Sample((Turn("system", ("be brief",)), *good.turns), f"rows.jsonl:{line}") for line in (2, 3)]
    with pytest.raises(VlmtuneError) as error:
        text_tokens([good, *bad], processor, tiny.family)
    assert error.value.message == "2 of 3 rows do not fit the model"
    assert [problem.message for problem in error.value.problems] == [
        f"rows.jsonl:{line}: the chat template refuses this row: no system turn" for line in (2, 3)
    ]


def test_a_million_bad_rows_are_counted_and_fifty_named(models):
    tiny = models("paligemma")
    rows = [sample("what?", "this", where=f"rows.jsonl:{line}") for line in range(1, 201)]
    with pytest.raises(VlmtuneError, match="^200 of 200 rows do not fit the model") as error:
        text_tokens(rows, tiny.processor, tiny.family)
    assert len(error.value.problems) == 50
    assert str(error.value.problems[-1]).startswith("rows.jsonl:50: this model needs an image in every row")


def test_progress_is_told_in_rows(rows, models):
    tiny = models("llava")
    told = []

    class Told:
        def __init__(self, what, total) -> None:
            told.append((what, total))

        def __enter__(self):
            return told.append

        def __exit__(self, *error) -> None:
            pass

    text_tokens(rows(), tiny.processor, tiny.family, Told)
    assert told[0] == ("measuring rows", 299) and sum(told[1:]) == 299
