"""Tokenizers, processors and templates that attack or are broken: one message that names the file, soon."""

import json
import os
import shutil
import time

import pytest
from tiny.rows import tiny_plan

from vlmtune.errors import VlmtuneError
from vlmtune.models.opened import limited, processor
from vlmtune.models.processor import load_processor

TEMPLATE, TOKENIZER, SETTINGS = "chat_template.jinja", "tokenizer.json", "processor_config.json"
DOUBLES = "{% set ns = namespace(t='x') %}{% for a in range(40) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t }}"
FOR_EVER = "{% for a in range(9999) %}" * 3 + "{% endfor %}" * 3
HOSTILE_TEMPLATES = {
    "six gigabytes": "{{ 'x' * 6000000000 }}",
    "a width": "{{ '%6000000000d' % 1 }}",
    "a text twice as long each time": DOUBLES,
    "megabytes a row": "{% for m in messages %}{{ 'x' * 3000000 }}{% endfor %}",
    "loops": FOR_EVER,
    "a power": "{{ 10 ** (10 ** 10) }}",
}
BROKEN_TEMPLATES = {
    "calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "not closed": "{% for m in messages %}",
    "refuses every row": "{{ raise_exception('no') }}",
    "reaches for Python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "adds a text to a number": "{{ 1 + 'a' }}",
}
GROWS = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
NORMALIZERS = {
    "prepended": {"type": "Prepend", "prepend": "x" * 3_000_000},
    "grows": {"type": "Sequence", "normalizers": [GROWS] * 40},
    "a word for a letter": {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 4_000_000},
}


@pytest.fixture
def copy(models, tmp_path):
    return shutil.copytree(models("qwen3_vl").folder, tmp_path / "model")


@pytest.fixture
def soon(monkeypatch):
    """What would take half a minute and two gigabytes is ended long before."""
    monkeypatch.setattr(limited, "LIMIT_S", 1)
    monkeypatch.setattr(limited, "LIMIT_BYTES", 2**26)


def error(folder) -> str:
    started = time.perf_counter()
    with pytest.raises(VlmtuneError) as raised:
        load_processor(tiny_plan(folder))
    assert time.perf_counter() - started < 20
    assert raised.value.hint and "\n" not in raised.value.message
    return raised.value.message


@pytest.mark.parametrize("template", HOSTILE_TEMPLATES.values(), ids=HOSTILE_TEMPLATES)
def test_a_template_that_takes_too_much_is_named(copy, soon, template):
    (copy / TEMPLATE).write_text(template)
    assert f"{copy / TEMPLATE}: the chat template cannot be used: it takes more than" in error(copy)


@pytest.mark.parametrize("template", BROKEN_TEMPLATES.values(), ids=BROKEN_TEMPLATES)
def test_a_template_that_does_not_work_is_named(copy, template):
    (copy / TEMPLATE).write_text(template)
    assert "chat template" in (message := error(copy)) and str(copy) in message


@pytest.mark.parametrize("normalizer", NORMALIZERS.values(), ids=NORMALIZERS)
def test_a_tokenizer_that_takes_too_much_is_named(copy, soon, normalizer):
    whole = json.loads((copy / TOKENIZER).read_text())
    (copy / TOKENIZER).write_text(json.dumps({**whole, "normalizer": normalizer}))
    assert f"{copy / TOKENIZER}: the tokenizer cannot be used: it takes more than" in error(copy)


BROKEN_FILES = [
    (TOKENIZER, b""),
    (TOKENIZER, b"{}"),
    (TOKENIZER, b'{"model": 1}'),
    (TOKENIZER, b"[" * 100_000),
    ("tokenizer_config.json", b"[]"),
    ("tokenizer_config.json", b'{"tokenizer_class": "NoSuchTokenizer", "auto_map": {"AutoTokenizer": ["x.Y", null]}}'),
    (SETTINGS, b"\xff\xfe"),
    (SETTINGS, b'{"image_processor": 1}'),
    (SETTINGS, b'{"processor_class": "NoSuchProcessor", "auto_map": {"AutoProcessor": "evil.Processor"}}'),
    ("special_tokens_map.json", b'{"eos_token": {"a": 1}}'),
]


@pytest.mark.parametrize(("name", "content"), BROKEN_FILES, ids=lambda value: str(value)[:40])
def test_a_broken_file_is_one_message(copy, name, content):
    (copy / name).write_bytes(content)
    try:
        load_processor(tiny_plan(copy))
    except VlmtuneError as raised:
        assert "\n" not in raised.message and str(copy) in raised.message and raised.hint


def test_the_broken_file_is_named(copy):
    whole = (copy / TOKENIZER).read_bytes()
    (copy / TOKENIZER).write_bytes(whole[: len(whole) // 2])
    assert f"the processor of {copy} cannot be loaded: {TOKENIZER}: " in error(copy)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_is_not_waited_for(copy, make):
    (copy / TOKENIZER).unlink()
    make(copy / TOKENIZER)
    assert f"{copy / TOKENIZER} is a" in error(copy)


def test_a_file_without_end_is_not_read(copy):
    with (copy / TOKENIZER).open("r+b") as file:
        file.truncate(10**12)
    assert f"{copy / TOKENIZER} is larger than 128 MiB" in error(copy)


def test_code_beside_a_model_is_not_run(copy):
    """Neither by a question on the terminal that runs out into a yes, nor unasked."""
    (copy / "evil.py").write_text(f"open({str(copy / 'ran')!r}, 'w')\nclass Processor: pass\n")
    settings = {"processor_class": "Processor", "auto_map": {"AutoProcessor": "evil.Processor"}}
    (copy / SETTINGS).write_text(json.dumps(settings))
    assert "cannot be loaded" in error(copy)
    assert not (copy / "ran").exists()


def test_the_same_files_are_tried_once(copy, monkeypatch):
    (copy / TEMPLATE).write_text((copy / TEMPLATE).read_text() + "{# of this test #}")
    load_processor(tiny_plan(copy))
    monkeypatch.setattr(processor, "_try", lambda *_: pytest.fail("tried again"))
    load_processor(tiny_plan(copy))
    processor._passed.clear()  # as another command begins
    load_processor(tiny_plan(copy))
    (copy / TEMPLATE).write_text((copy / TEMPLATE).read_text() + "{# changed #}")
    with pytest.raises(pytest.fail.Exception):
        load_processor(tiny_plan(copy))
