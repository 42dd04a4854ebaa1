"""Tools, calls and reasoning: templates that know them are given them, others refuse the row by name."""

import copy
import json

import pytest
from tiny.rows import sample

from vlmtune.data.dataset import TuneDataset
from vlmtune.data.encode import IGNORED, encode, render
from vlmtune.data.preview import pieces
from vlmtune.data.run_data import MeasuredRows
from vlmtune.data.types import Sample, Turn
from vlmtune.errors import VlmtuneError

KNOWING = (
    "{% if tools %}<|im_start|>system\nTools:{% for t in tools %} {{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ 'user' if m['role'] == 'tool' else m['role'] }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% for p in m['content'] %}{{ '<|image_pad|>' if p['type'] == 'image' else p['text'] }}{% endfor %}"
    "{% for c in m.tool_calls or [] %}CALL {{ c | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = json.dumps([{"name": "crop"}])
CALL = json.dumps({"tool_calls": [{"name": "crop"}]})


def row(*turns: Turn, tools: str = "", where: str = "rows.jsonl:1") -> Sample:
    return Sample((Turn("user", ("what?",)), *turns), where, tools=tools)


ANSWER = Turn("assistant", ("a",))
GIVEN = {
    "tools": row(ANSWER, tools=TOOLS),
    "tool_calls": row(Turn("assistant", ("so",), more=CALL)),
    "reasoning_content": row(Turn("assistant", ("a",), more='{"reasoning_content": "because"}')),
    "turns of the role tool": row(ANSWER, Turn("tool", ("ok",)), ANSWER),
}


def with_template(tiny, template: str):
    changed = copy.copy(tiny)
    changed.processor = copy.copy(tiny.processor)
    changed.processor.chat_template = template
    return changed


@pytest.mark.parametrize("what", GIVEN)
@pytest.mark.parametrize("model_type", ["qwen2_vl", "smolvlm", "gemma3", "qwen"])
def test_a_template_that_does_not_know_them_refuses_the_row_by_name(what, model_type, models):
    tiny = models(model_type)
    with pytest.raises(VlmtuneError) as error:
        encode(GIVEN[what], [], tiny.processor, tiny.family)
    assert error.value.message == f"rows.jsonl:1: the chat template of this model does not know {what}"
    assert what in error.value.hint
    with pytest.raises(VlmtuneError, match="1 of 2 rows do not fit the model") as error:
        rows = [GIVEN[what], sample("q", "a", where="rows.jsonl:2")]
        MeasuredRows(rows).lengths(tiny.processor, tiny.family, tiny.plan, tiny.source)
    assert what in str(error.value)


@pytest.mark.parametrize("model_type", ["paligemma", "instructblip"])
def test_models_without_a_template_refuse_them_all(model_type, models):
    tiny = models(model_type)
    for one in GIVEN.values():
        with pytest.raises(VlmtuneError, match="no chat template that would know tools or reasoning"):
            encode(one, [], tiny.processor, tiny.family)


def test_a_template_that_knows_them_writes_them(models):
    tiny = with_template(models("qwen2_vl"), KNOWING)
    written = {what: render(one, tiny.processor)[0] for what, one in GIVEN.items()}
    assert '<|im_start|>system\nTools: {"name": "crop"}<|im_end|>' in written["tools"]
    assert 'soCALL {"name": "crop"}<|im_end|>' in written["tool_calls"]
    assert "<think>because</think>a<|im_end|>" in written["reasoning_content"]
    assert "<|im_start|>user\nok<|im_end|>" in written["turns of the role tool"]


def test_calls_and_reasoning_are_learned_and_answers_of_tools_are_read(models):
    tiny = with_template(models("qwen2_vl"), KNOWING)
    call = Turn("assistant", (), more=CALL)
    sample = row(call, Turn("tool", ("ok",)), Turn("assistant", ("done",)), tools=TOOLS)
    encoded = TuneDataset([sample], tiny.processor, tiny.family, tiny.plan)[0]
    learned = [piece.text for piece in pieces(encoded, tiny.processor) if piece.kind == "learned"]
    assert learned == ['CALL {"name": "crop"}<|im_end|>', "done<|im_end|>"]


def test_many_of_them_are_counted_as_each_is_alone(models):
    tiny = with_template(models("qwen2_vl"), KNOWING)
    rows = [
        row(Turn("assistant", ("a",), more=json.dumps({"reasoning_content": "b" * number})), tools=TOOLS)
        for number in range(1, 120)
    ]
    lengths = MeasuredRows(rows).lengths(tiny.processor, tiny.family, tiny.plan, tiny.source)
    alone = [encode(one, [], tiny.processor, tiny.family).num_text_tokens for one in rows]
    assert lengths.total.tolist() == alone and len(set(alone)) == len(rows)


@pytest.mark.parametrize("model_type", ["qwen2_vl", "gemma3", "smolvlm", "llava", "qwen", "idefics3", "qwen3_vl"])
def test_turns_that_are_not_to_be_learned_have_no_labels(model_type, models):
    tiny = models(model_type)
    bad, good = Turn("assistant", ("bad",), is_learned=False), Turn("assistant", ("good",))
    two = row(bad, Turn("user", ("and?",)), good)
    encoded = encode(two, [], tiny.processor, tiny.family)
    learned = tiny.processor.tokenizer.decode(encoded.labels[encoded.labels != IGNORED])
    assert "good" in learned and "bad" not in learned
    reverse = encode(row(good, Turn("user", ("and?",)), bad), [], tiny.processor, tiny.family)
    learned = tiny.processor.tokenizer.decode(reverse.labels[reverse.labels != IGNORED])
    assert "good" in learned and "bad" not in learned
    every = encode(row(good, Turn("user", ("and?",)), good), [], tiny.processor, tiny.family)
    assert MeasuredRows([two]).lengths(tiny.processor, tiny.family, tiny.plan, tiny.source).text.tolist() == [
        every.num_text_tokens - 1
    ]
