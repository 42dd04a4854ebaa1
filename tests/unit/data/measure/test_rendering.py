"""Rows put together by their shape are what the chat template writes, whatever the template does."""

import copy
import random

import pytest

from vlmtune.data.encode import render
from vlmtune.data.measure.rendering import Renderer, words_of
from vlmtune.data.table.layout import without_images
from vlmtune.errors import VlmtuneError

LOOP = (
    "{%% for m in messages %%}<|im_start|>{{ m['role'] }}\n"
    "{%% for p in m['content'] %%}%s{%% endfor %%}<|im_end|>{%% endfor %%}"
)
IMAGE = "{% if p['type'] == 'image' %}<image>{% else %}"
PLAIN = LOOP % (IMAGE + "{{ p['text'] }}{% endif %}")
TEMPLATES = {
    "as it is": PLAIN,
    "trimmed": LOOP % (IMAGE + "{{ p['text'] | trim }}{% endif %}"),
    "trimmed on the left": LOOP % (IMAGE + "{{ p['text'].lstrip() }}{% endif %}"),
    "joined and trimmed": (
        "{% macro shown(parts) %}{% for p in parts %}" + IMAGE + "{{ p['text'] }}{% endif %}{% endfor %}{% endmacro %}"
        "{% for m in messages %}{{ m['role'] }}:{% set text = shown(m['content']) | trim %}"
        "{% if '</think>' in text %}{{ text.split('</think>')[-1] }}{% else %}{{ text }}{% endif %}|{% endfor %}"
    ),
    "images first": (
        "{% for m in messages %}{{ m['role'].upper() }}: "
        "{% for p in m['content'] | selectattr('type', 'equalto', 'image') %}<image>{% endfor %}"
        "{% for p in m['content'] | selectattr('type', 'equalto', 'text') %}"
        "{% generation %}{{ p['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endfor %}"
    ),
    "a key called like a word": LOOP % (
        "{% if 'image' in p or p['type'] == 'image' %}<image>{% elif 'text' in p %}{{ p['text'] }}{% endif %}"
    ),
    "a text that is a word": LOOP % (IMAGE + "{{ 'silence' if p['text'] == 'none' else p['text'] }}{% endif %}"),
    "a text that begins with a word": LOOP % (
        IMAGE + "{{ p['text'][5:] if p['text'].startswith('/tool') else p['text'] }}{% endif %}"
    ),
    "a beginning and an end together": LOOP % (
        IMAGE + "{% if p['text'].startswith('<a>') and p['text'].endswith('</a>') %}link"
        "{% else %}{{ p['text'] }}{% endif %}{% endif %}"
    ),
    "two words together": LOOP % (
        IMAGE + "{% if '<a>' in p['text'] and '</a>' in p['text'] %}link{% else %}{{ p['text'] }}{% endif %}{% endif %}"
    ),
    "a word that is not there": LOOP % (
        IMAGE + "{% if '!' not in p['text'] %}{{ p['text'] }}{% else %}loud{% endif %}{% endif %}"
    ),
}  # fmt: skip
UNPROVEN = {
    "capitals": LOOP % (IMAGE + "{{ p['text'] | upper }}{% endif %}"),
    "escaped": LOOP % (IMAGE + "{{ p['text'] | tojson }}{% endif %}"),
    "shortened": LOOP % (IMAGE + "{{ p['text'][:100] }}{% endif %}"),
    "by its length": LOOP % (IMAGE + "{{ 'long' if p['text'] | length > 500 else p['text'] }}{% endif %}"),
    "numbers are told apart": LOOP % (IMAGE + "{{ 'number' if p['text'].isdigit() else p['text'] }}{% endif %}"),
    "line by line": LOOP % (IMAGE + "{% for line in p['text'].split('\n') %}{{ line | trim }}{% endfor %}{% endif %}"),
}
SHAPES = ("UtAt", "UptAt", "StUtpAt", "UptAtUtAt", "UttpAtt")
WORDS = ["a", "image", "text", "none", "/tool", "<a>", "</a>", "</think>", "!", "7", "Loud", "line\nbreak", "\u2003"]


@pytest.fixture
def processor(models):
    """A processor whose chat template a test may change."""
    return copy.copy(models("qwen2_vl").processor)


def text(rng: random.Random) -> str:
    words = " ".join(rng.choices(WORDS, k=rng.randrange(1, 6)))
    return rng.choice([words, words, f"  {words}\n", f"\n{words}", rng.choice(WORDS)])


def plain_rows(renderer: Renderer, shape: str, count: int) -> None:
    """Render so many rows that nothing is special about."""
    for number in range(count):
        renderer(shape, [f"text {number} of {place}" for place in range(shape.count("t"))], "rows.jsonl:1")


@pytest.mark.parametrize("name", [*TEMPLATES, *UNPROVEN])
def test_rows_are_what_the_template_writes(name, processor):
    processor.chat_template = (TEMPLATES | UNPROVEN)[name]
    renderer, rng = Renderer(processor), random.Random(0)
    for shape in SHAPES:
        plain_rows(renderer, shape, 200)
        for _ in range(150):
            texts = [text(rng) for _ in range(shape.count("t"))]
            expected = render(without_images(shape, texts, "w"), processor)[0]
            assert renderer(shape, texts, "w") == expected, texts


@pytest.mark.parametrize("name", [*TEMPLATES, *UNPROVEN])
def test_the_template_is_asked_no_more_than_it_must_be(name, processor, monkeypatch):
    processor.chat_template = (TEMPLATES | UNPROVEN)[name]
    renderer = Renderer(processor)
    plain_rows(renderer, "UptAt", 200)
    asked = []
    monkeypatch.setattr(
        "vlmtune.data.measure.rendering.render", lambda sample, processor: asked.append(sample) or ("", [])
    )
    plain_rows(renderer, "UptAt", 10)
    assert len(asked) == (10 if name in UNPROVEN else 0)


@pytest.mark.parametrize(
    ("name", "special", "usual"),
    [
        ("joined and trimmed", "so</think>this", "so this"),
        ("a text that is a word", "none", "nothing"),
        ("a text that begins with a word", "/tool this", "this"),
        ("a beginning and an end together", "<a>this</a>", "<b>this</b>"),
        ("two words together", "<a>this</a>", "<b>this</b>"),
        ("a word that is not there", "loud!", "loud"),
        ("a key called like a word", None, "an image of a text"),
    ],
)
def test_only_rows_with_what_a_template_looks_for_are_rendered_one_by_one(name, special, usual, processor, monkeypatch):
    processor.chat_template = TEMPLATES[name]
    renderer = Renderer(processor)
    plain_rows(renderer, "UtAt", 200)
    monkeypatch.setattr("vlmtune.data.measure.rendering.render", lambda sample, processor: ("asked", []))
    assert renderer("UtAt", [usual, "answer"], "w") != "asked"
    if special:
        assert renderer("UtAt", [special, "answer"], "w") == "asked"


def test_a_template_that_rewrites_earlier_turns_is_refused_for_each_row_by_name(processor):
    processor.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'][0]['text'] if loop.last else '...' }}\n{% endfor %}"
    )
    renderer = Renderer(processor)
    for line in (1, 2):
        with pytest.raises(VlmtuneError, match=f"^rows.jsonl:{line}: the chat template rewrites earlier turns"):
            renderer("UtAt", ["a", "b"], f"rows.jsonl:{line}")


def test_what_a_template_refuses_names_the_row(processor):
    processor.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn, please') }}{% endif %}" + PLAIN
    )
    renderer = Renderer(processor)
    with pytest.raises(VlmtuneError, match="^rows.jsonl:7: the chat template refuses this row: no system turn, please"):
        renderer("StUtAt", ["a", "b", "c"], "rows.jsonl:7")
    assert renderer("UtAt", ["a", "b"], "rows.jsonl:8")


def test_a_form_that_does_not_write_the_rows_seen_is_not_used(processor, monkeypatch):
    """What a template does by chance or by the clock shows in real rows."""
    renderer = Renderer(processor)
    renderer("UtAt", ["an odd row", "answer"], "w")
    renderer._compared["UtAt"][0] = (["an odd row", "answer"], "written otherwise")
    plain_rows(renderer, "UtAt", 300)
    monkeypatch.setattr("vlmtune.data.measure.rendering.render", lambda sample, processor: ("asked", []))
    assert renderer("UtAt", ["question", "answer"], "w") == "asked"


def test_the_words_of_a_template_are_its_strings():
    source = "{{'first'}}{% if 'a\\n' in x or x.endswith(\"b\") %}not this{{ x['key'] }}{# 'nor this' #}{% endif %}"
    assert words_of(source) == (["first", "a\n", "b", "key"], ["b"])
    assert words_of({"default": "{{ 'a' }}", "tools": "{{ 'b' }}"}) == (["a", "b"], [])
