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
from vlmtune.data.measure.counting import REFUSED, text_tokens
from vlmtune.data.samples import read_samples
from vlmtune.data.table import looks, make
from vlmtune.data.types import BadRow, Sample, Turn


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
        tokens, bad_rows = real(batches, *rest)
        numbers.append(len(tokens))
        return tokens, bad_rows

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
    assert text_tokens(table, tiny.processor, tiny.family)[0].tolist() == [alone(row, tiny) for row in table]


def test_they_are_counted_once(rows, models, counted):
    tiny = models("llava")
    first = text_tokens(rows(), tiny.processor, tiny.family)[0].tolist()
    tiny.processor.tokenizer(["short", "a longer text"], padding=True, truncation=True, max_length=5)
    assert text_tokens(rows(), tiny.processor, tiny.family)[0].tolist() == first and counted == [299]


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
    tokens, _ = text_tokens(rows(), processor, family)
    assert counted == [299, 299]
    changed = copy.copy(tiny)
    changed.processor = processor
    assert tokens.tolist() == [alone(row, changed) for row in rows()]


def test_a_repaired_row_is_counted_without_the_others(rows, models, counted, tmp_path):
    tiny = models("llava")
    text_tokens(rows(), tiny.processor, tiny.family)
    Image.new("RGB", (8, 8)).save(tmp_path / "gone.png")
    tokens, _ = text_tokens(rows(), tiny.processor, tiny.family)
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


def refusing(tiny):
    """A processor whose template takes no system turn."""
    processor = copy.copy(tiny.processor)
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    processor.chat_template = refusal + processor.chat_template
    return processor


def test_every_row_that_the_template_refuses_is_named_and_the_others_are_counted(models):
    tiny = models("llava")
    good = sample("what?", "this", where="rows.jsonl:1")
    bad = [Sample((Turn("system", ("be brief",)), *good.turns), f"rows.jsonl:{line}") for line in (2, 3)]
    tokens, bad_rows = text_tokens([bad[0], good, bad[1]], refusing(tiny), tiny.family)
    assert tokens.tolist() == [REFUSED, alone(good, tiny), REFUSED]
    assert bad_rows == [
        BadRow(f"rows.jsonl:{line}", "the chat template refuses this row: no system turn", None) for line in (2, 3)
    ]
    assert [bad.number for bad in bad_rows] == [2, 3]


def test_refused_rows_of_a_table_are_asked_again_at_each_start(rows, models, counted):
    tiny = models("llava")
    processor = copy.copy(tiny.processor)
    word = "{% if '7' in messages[0]['content'][0]['text'] %}{{ raise_exception('no sevens') }}{% endif %}"
    processor.chat_template = word + processor.chat_template
    first, bad_rows = text_tokens(rows(), processor, tiny.family)
    again, bad_rows_again = text_tokens(rows(), processor, tiny.family)
    assert bad_rows == bad_rows_again and 0 < len(bad_rows) < 299 == len(first)
    assert (first == again).all() and (first == REFUSED).sum() == len(bad_rows)
    assert counted == [299, len(bad_rows)]


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
