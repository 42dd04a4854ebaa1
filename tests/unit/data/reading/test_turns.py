"""Keys of turns: learned or not, given to templates, known to say nothing, or refused by name."""

import json

import pytest

from vlmtune.data.reading.formats import parse_row
from vlmtune.data.reading.image_refs import ImageRules
from vlmtune.data.types import RowProblem, Sample

RULES = ImageRules("/data", allow_urls=False)
CALL = {"name": "crop", "arguments": {"x": 1}}


def parsed(row: dict) -> Sample:
    return parse_row(row, "rows.jsonl:1", RULES).sample


def chat(*turns: dict, **columns) -> dict:
    return {"messages": list(turns), **columns}


def user(content="q", **keys) -> dict:
    return {"role": "user", "content": content, **keys}


def answer(content="a", **keys) -> dict:
    return {"role": "assistant", "content": content, **keys}


def problem_of(row: dict) -> tuple[str, str | None]:
    with pytest.raises(RowProblem) as raised:
        parse_row(row, "rows.jsonl:1", RULES)
    return raised.value.problem, raised.value.hint


@pytest.mark.parametrize("key", ["loss", "weight", "train"])
@pytest.mark.parametrize("value", [False, 0, 0.0])
def test_turns_that_are_not_to_be_learned_are_not(key, value):
    sample = parsed(chat(user(), answer("bad", **{key: value}), user(), answer("good")))
    assert [turn.is_answer for turn in sample.turns] == [False, False, False, True]


@pytest.mark.parametrize("keys", [{"loss": True}, {"weight": 1}, {"weight": 1.0}, {"train": True}, {"loss": None}, {}])
def test_turns_that_are_to_be_learned_are(keys):
    sample = parsed({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", **keys}]})
    assert [turn.is_answer for turn in sample.turns] == [False, True]


def test_a_question_that_is_marked_as_not_learned_is_a_question():
    assert parsed(chat(user(weight=0, loss=False), answer())) == parsed(chat(user(), answer()))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (chat(user(), answer(weight=0.5)), "turn 2 (assistant): weight is 0.5 where 0 or 1 is expected"),
        (chat(user(), answer(loss="no")), "turn 2 (assistant): loss is a string where 0 or 1 is expected"),
        (chat(user(train=True), answer()), "turn 1 (user): train is true, but only assistant turns are learned"),
        (chat(user(), answer(loss=True, weight=0)), "turn 2 (assistant): loss and weight contradict each other"),
        (chat(user(), answer(loss=False)), "no turn of the row is learned"),
        (chat(user(), answer(), user(), answer(wieght=0)), "turn 4 has the key 'wieght', which is not known"),
        (chat(user(), answer(mask=1)), "turn 2 has the key 'mask', which is not known"),
        (chat(user(image="a.png"), answer()), "turn 1 has image beside its content"),
        (chat(user(videos=["a.mp4"]), answer()), "turn 1 has videos beside its content"),
        (chat(user(value="another q"), answer()), "turn 1 has both content and value"),
        (chat(user(**{"from": "human"}), answer()), "turn 1 has both role and from"),
        (chat(user(), {"role": "function_call", "content": "crop it"}, answer()), "turn 2 is not valid JSON"),
        (chat(user(), {"role": "function_call", "content": "[3]"}, answer()), "turn 2 is no call of a tool"),
        (chat(user(), answer(), tools="crop"), "tools is not valid JSON"),
        (chat(user(), answer(), tools={"name": "crop"}), "tools is an object where a list of objects is expected"),
        (chat(user(), answer(), {"role": "tool", "content": "ok"}, answer()),
         "turn 3 is tool where user is expected"),
    ],
)  # fmt: skip
def test_what_turns_are_refused_for(row, problem):
    found, hint = problem_of(row)
    assert found == problem and hint


def test_near_keys_are_named():
    assert problem_of(chat(user(), answer(wieght=0)))[1] == "did you mean weight?"
    assert problem_of(chat(user(), answer(reasoning_contents="so")))[1] == "did you mean reasoning_content?"


def test_keys_that_say_nothing_are_counted_and_empty_ones_are_nothing():
    row = chat(user(id=7, timestamp="12:30"), answer(id=8, mask=[], note="", images=None))
    found = parse_row(row, "rows.jsonl:1", RULES)
    assert found.unused_columns == {"messages.id", "messages.timestamp"}
    assert found.sample == parsed(chat(user(), answer()))


@pytest.mark.parametrize("system", ["", " \n", None, []])
def test_an_empty_system_prompt_is_none(system):
    plain = parsed(chat(user(), answer()))
    assert parsed(chat({"role": "system", "content": system}, user(), answer())) == plain
    assert parsed(chat(user(), answer(), system=system)) == plain
    assert parsed({"system": system, "question": "q", "answer": "a"}) == plain


def test_what_templates_are_given_is_kept():
    sample = parsed(chat(user(), answer("so", reasoning_content="because", name="A", tool_calls=[])))
    assert json.loads(sample.turns[1].more) == {"reasoning_content": "because", "name": "A"}
    assert sample.messages()[1]["reasoning_content"] == "because"


def test_calls_of_other_tools_are_those_of_messages():
    told = [{"from": "function_call", "value": json.dumps(CALL)}, {"from": "observation", "value": "ok"}]
    row = {"conversations": [{"from": "human", "value": "q"}, *told, {"from": "gpt", "value": "a"}]}
    called = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": CALL}]}
    messages = [user(), called, {"role": "tool", "content": "ok"}, answer()]
    tools = [{"type": "function", "function": {"name": "crop"}}]
    sample = parsed(row | {"tools": json.dumps([{"name": "crop"}])})
    assert sample == parsed({"messages": messages, "tools": tools})
    assert [turn.role for turn in sample.turns] == ["user", "assistant", "tool", "assistant"]
    assert json.loads(sample.tools) == tools and sample.has_more


def test_a_call_may_be_the_last_answer():
    turn = parsed(chat(user(), answer(None, tool_calls=[CALL]))).turns[-1]
    assert turn.is_answer and turn.parts == () and json.loads(turn.more) == {"tool_calls": [CALL]}


@pytest.mark.parametrize("tools", ["", " ", [], "[]", None])
def test_no_tools_are_none(tools):
    sample = parsed(chat(user(), answer(), tools=tools))
    assert sample.tools == "" and not sample.has_more


def test_pairs_of_texts_are_turns():
    texts = [{"user": "q", "assistant": "a", "source": "x"}, {"user": "and?", "assistant": "b", "source": "x"}]
    sample = parsed({"images": ["a.png"], "texts": texts})
    assert sample == parsed(chat(user(), answer(), user("and?"), answer("b"), images=["a.png"]))
    assert problem_of({"texts": ["a", "b"]})[0] == "texts, part 1 is no object with user and assistant"
