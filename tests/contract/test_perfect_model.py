"""A model that writes what it was taught, wherever it is asked as it was taught, has an exact match of 100 %."""

import dataclasses
import unicodedata

import pytest
import torch
from tiny import TINY
from tiny.rows import TinyModel, picture, sample
from tiny.templates import BY_ITSELF, OTHERWISE, REFUSED, SWITCH, THINKING
from transformers import AutoProcessor

from vlmtune.data.encode import encode
from vlmtune.data.images import open_image
from vlmtune.data.measure.counting import text_tokens
from vlmtune.data.types import Sample, Turn
from vlmtune.engine import evaluate as module
from vlmtune.engine.evaluate import Evaluation, Terms, evaluate_rows, without_thought
from vlmtune.engine.tuned import Tuned
from vlmtune.errors import VlmtuneError
from vlmtune.models.build import build_model
from vlmtune.models.processor import load_processor, template_notes

ASKED = [{"role": "user", "content": [{"type": "text", "text": "Colour?"}]}]
BOXES = ["<box>", "</box>", "<|box_start|>", "<|box_end|>", "<loc0001>", "<seg001>"]
ANSWERS = {
    "plain": ["it is red", "blue"],
    "blanks": ["\nit is red", "\n\n blue\n", " black "],
    "joined": [") red", "://blue", "\u0301"],
    "longer than 256 tokens": ["red " * 100, "blue"],
    "composed and not": [unicodedata.normalize("NFD", "Größe 10 é"), unicodedata.normalize("NFC", "Größe 10 é")],
    "boxes": ["<box>(1,2)</box>", "<|box_start|>(3,4),(5,6)<|box_end|>", "<loc0001><loc0001> cat ; <seg001>"],
}


@pytest.fixture(scope="module", params=sorted(TINY))
def tiny(request, tmp_path_factory) -> TinyModel:
    """A tiny model that has tokens for boxes, as those of PaliGemma and Qwen have."""
    made = TinyModel(request.param, tmp_path_factory.mktemp("perfect"))
    made.processor.tokenizer.add_tokens(BOXES, special_tokens=True)
    return made


def perfect_evaluation(tiny, rows: list[Sample], monkeypatch, processor=None) -> Evaluation:
    """Evaluate a model that goes on with a row that it was taught, and writes nothing where it was taught none such."""
    processor = processor or tiny.processor
    assert text_tokens(rows, processor, tiny.family)[1] == []
    images = [[open_image(ref, None) for ref in row.images] for row in rows]
    taught = [
        encode(row, pictures, processor, tiny.family).tensors["input_ids"][0].tolist()
        for row, pictures in zip(rows, images, strict=True)
    ]

    def write(model, prompt, *, max_new_tokens, **settings):
        asked = prompt["input_ids"][0].tolist()
        known = next((ids for ids in taught if ids[: len(asked)] == asked), asked)
        return torch.tensor([known[: len(asked) + max_new_tokens]])

    monkeypatch.setattr(module, "generated", write)
    monkeypatch.setattr(module, "row_losses", lambda model, rows, *rest: [(0.0, 1)] * len(rows))
    return evaluate_rows(Tuned(tiny.plan, build_model(tiny.plan), processor), rows, Terms(rows_at_once=1))


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_perfect_model_is_exact(tiny, kind, tmp_path, monkeypatch):
    image = picture(tmp_path, "a", (60, 60), "red")
    rows = [sample(f"question {n}?", answer, image) for n, answer in enumerate(ANSWERS[kind])]
    found = perfect_evaluation(tiny, rows, monkeypatch)
    assert [(answer.expected, answer.answer) for answer in found.answers if not answer.scores["exact"]] == []
    assert found.metrics == {"exact": 1.0} and found.num_cut == 0


def test_only_the_last_answer_is_asked_for(tiny, tmp_path, monkeypatch):
    image = picture(tmp_path, "a", (60, 60), "red")
    turns = (
        Turn("system", ("",)),
        Turn("user", (image, "one?")),
        Turn("assistant", ("first",)),
        Turn("user", ("two?",)),
        Turn("assistant", ("\nsecond",)),
    )
    one_answer = (Turn("user", (image, "two?")), turns[-1])
    row = Sample(one_answer if tiny.family.one_answer else turns, "rows.jsonl:1")
    assert perfect_evaluation(tiny, [row], monkeypatch).metrics["exact"] == 1.0


def test_a_last_answer_that_was_not_learned_is_asked_for_too(models, tmp_path, monkeypatch):
    tiny = models("qwen2_vl")
    first = (Turn("user", ("one?",)), Turn("assistant", ("a",)), Turn("user", ("two?",)))
    row = Sample((*first, Turn("assistant", ("a longer one",), is_learned=False)), "rows.jsonl:1")
    assert perfect_evaluation(tiny, [row], monkeypatch).metrics["exact"] == 1.0


def test_an_answer_that_does_not_end_is_counted_as_cut(tiny, tmp_path, monkeypatch):
    image = picture(tmp_path, "a", (60, 60), "red")
    rows = [sample("one?", "red", image), sample("two?", "a longer one", image)]
    perfect_evaluation(tiny, rows, monkeypatch)
    tuned = Tuned(tiny.plan, build_model(tiny.plan), tiny.processor)
    found = evaluate_rows(tuned, rows, Terms(max_new_tokens=5, rows_at_once=1))
    assert [answer.cut for answer in found.answers] == [False, True] and found.num_cut == 1
    assert found.max_new_tokens == 5
    assert evaluate_rows(tuned, rows, Terms(rows_at_once=1)).max_new_tokens in (13, 14)  # some begin with a blank


CASES = {  # template, what the config says, how the prompt ends, what is said
    "asked within a thought": (THINKING, None, "<think>\n", "for a thought first"),
    "asked not to think": (SWITCH, None, "</think>\n\n", "enable_thinking = false"),
    "asked to think as wished": (SWITCH, True, "<think>\n", "for a thought first"),
    "asked not to think as wished": (SWITCH, False, "</think>\n\n", None),
    "thinks by itself": (BY_ITSELF, None, "assistant\n", "for a thought first"),
    "rows without a thought": (OTHERWISE, None, "assistant\n", "enable_thinking = false"),
}


@pytest.mark.parametrize(("template", "wish", "end", "said"), CASES.values(), ids=CASES)
def test_a_model_that_thinks_is_asked_as_it_was_taught(template, wish, end, said, tmp_path, monkeypatch):
    tiny = TinyModel("qwen3_vl", tmp_path)
    (tiny.folder / "chat_template.jinja").write_text(template)
    plan = dataclasses.replace(tiny.plan, chat_template_kwargs={} if wish is None else {"enable_thinking": wish})
    processor = load_processor(plan)
    assert [said in note for note in template_notes(processor, plan)] == ([True] if said else [])
    image = picture(tmp_path, "a", (60, 60), "red")
    rows = [sample("Colour?", "red", image), sample("Which one?", "\nblue", image)]
    found = perfect_evaluation(tiny, rows, monkeypatch, processor)
    assert [answer.answer for answer in found.answers] == ["red", "blue"] and found.metrics["exact"] == 1.0
    processor.save_pretrained(tmp_path / "served")
    served = AutoProcessor.from_pretrained(tmp_path / "served")
    asked = [
        made.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True) for made in (processor, served)
    ]
    assert asked[0] == asked[1] and asked[0].endswith(end)


def test_a_template_that_is_replaced_is_said(tmp_path):
    tiny = TinyModel("llava", tmp_path)
    [note] = template_notes(load_processor(tiny.plan), tiny.plan)
    assert note.startswith("the chat template is vlmtune's: the published one of such models puts no end token")
    own = (tiny.folder / "chat_template.jinja").read_text().replace("+ ' ' }}{% endfor %}", "}}{% endfor %}</s>")
    (tiny.folder / "chat_template.jinja").write_text(own)
    assert template_notes(load_processor(tiny.plan), tiny.plan) == []


def test_a_switch_that_the_template_does_not_have_is_refused(tmp_path):
    tiny = TinyModel("qwen3_vl", tmp_path)
    plan = dataclasses.replace(tiny.plan, chat_template_kwargs={"enable_thinking": False})
    with pytest.raises(VlmtuneError, match="data.chat_template_kwargs.enable_thinking: the chat template of .* knows"):
        load_processor(plan)


def test_rows_that_no_switch_fits_are_named(tmp_path):
    tiny = TinyModel("qwen3_vl", tmp_path)
    tiny.processor.chat_template = REFUSED
    rows = [sample("Colour?", "red", where=f"rows.jsonl:{line}") for line in (3, 8)]
    bad_rows = text_tokens(rows, tiny.processor, tiny.family)[1]
    said = "the chat template asks for an answer in other words than it writes before one"
    assert [(bad.where, bad.problem.partition(",")[0]) for bad in bad_rows] == [(row.where, said) for row in rows]


def test_thoughts_are_no_part_of_answers_where_templates_know_them(tmp_path):
    tiny = TinyModel("qwen3_vl", tmp_path)
    text = "<think>\nit is dark\n</think>\n\nblack"
    assert without_thought(text, tiny.processor) == ("", text)
    tiny.processor.chat_template = THINKING
    assert without_thought(text, tiny.processor) == ("<think>\nit is dark\n", "\n\nblack")
