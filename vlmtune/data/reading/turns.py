"""Turns as rows write them -> `RawTurn`: their role, content, whether they are learned, and what templates are given.

No key of a turn is ignored in silence: it is used, it is known to say nothing of the text, or the row is refused.
"""

import difflib
import json
from typing import Any, NamedTuple

from vlmtune.data.types import Role, RowProblem, kind_of, shortened
from vlmtune.files import json_value

ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
}
CALLING = ("function_call", "tool_call")
"""Roles of other tools: an assistant's call of a tool, as JSON."""
ANSWERING = ("observation", "tool_response", "function")
"""Roles of other tools: what a tool has answered."""
LEARNED_KEYS = ("loss", "weight", "train")
TEMPLATE_KEYS = ("reasoning_content", "reasoning", "thinking", "tool_calls")
"""Of a message, for templates that know them."""
NAME_KEYS = ("name", "tool_call_id")
"""Of a message, for templates that know them; others need not."""
SAYING_NOTHING = ("id", "index", "idx", "turn", "turn_id", "timestamp", "created_at", "source", "language", "model")
"""Keys that say nothing of what a turn means."""
EXAMPLE_MESSAGES = (
    '{"images": ["photos/1.jpg"], "messages": [{"role": "user", "content": "<image>What is this?"}, '
    '{"role": "assistant", "content": "A cat."}]}'
)
HINT_MESSAGES = f"a right row: {EXAMPLE_MESSAGES}"
_HINT_KEYS = f"keys of a turn: role, content, {', '.join((*LEARNED_KEYS, *TEMPLATE_KEYS))}; remove others"
_HINT_MEDIA = 'images belong into the row\'s column "images", with <image> in the text where they go'
_MEDIA = ("image", "images", "img", "video", "videos", "audio", "audios", "bbox", "objects")


class RawTurn(NamedTuple):
    """A turn as written."""

    role: Role
    content: object
    is_learned: bool = True
    more: str = ""
    """As in `Turn`."""
    unused: tuple[str, ...] = ()
    """Keys that say nothing."""


def listed_turns(value: object, name: str, first_number: int) -> list[RawTurn]:
    """Return the turns of a list of messages; raises `RowProblem`."""
    if not isinstance(value, list):
        raise RowProblem(f"{name} is {kind_of(value)} where a list of turns is expected", HINT_MESSAGES)
    if not value:
        raise RowProblem(f"{name} is an empty list", HINT_MESSAGES)
    return [_turn(turn, number, name) for number, turn in enumerate(value, first_number)]


def pairs_of_texts(value: object, name: str) -> list[RawTurn]:
    """Return the turns of a list of objects with a user's and an assistant's text, as The Cauldron has them."""
    turns = []
    for number, pair in enumerate(value if isinstance(value, list) else [value], 1):
        if not isinstance(pair, dict) or not {"user", "assistant"} <= pair.keys() <= {"user", "assistant", "source"}:
            raise RowProblem(f"{name}, part {number} is no object with user and assistant", HINT_MESSAGES)
        turns += [RawTurn("user", pair["user"]), RawTurn("assistant", pair["assistant"])]
    return turns


def tools_of(value: object) -> str:
    """Return the definitions of tools as JSON, as templates take them; raises `RowProblem`."""
    if isinstance(value, str):
        value = _parsed(value, "tools", '[{"type": "function", "function": {"name": "crop"}}]') if value.strip() else []
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise RowProblem(f"tools is {kind_of(value)} where a list of objects is expected", "one object for each tool")
    wrapped = [tool if "name" not in tool else {"type": "function", "function": tool} for tool in value]
    return _as_json(wrapped) if wrapped else ""


def without_empty_system(turns: list[RawTurn]) -> list[RawTurn]:
    """Return the turns without system prompts that say nothing."""
    return [turn for turn in turns if turn.role != "system" or not _is_blank(turn.content)]


def check_order(turns: list[RawTurn]) -> None:
    """Raise `RowProblem` where turns do not follow each other as in a conversation, or nothing of them is learned."""
    expected: tuple[Role, ...] = ("user",)
    for number, turn in enumerate(turns, 1):
        if turn.role == "system" and number == 1:
            continue
        if turn.role not in expected:
            raise RowProblem(
                f"turn {number} is {turn.role} where {' or '.join(expected)} is expected",
                "turns alternate: system (optional), user, assistant, user, assistant, ...",
            )
        expected = _expected_after(turn)
    if not turns or turns[-1].role != "assistant":
        last = turns[-1].role if turns else "system"
        raise RowProblem(
            f"the last turn is {last}: there is no answer to learn", "end every row with an assistant turn"
        )
    if not any(turn.role == "assistant" and turn.is_learned for turn in turns):
        raise RowProblem("no turn of the row is learned", "leave the row out, or one of its answers in")


def _expected_after(turn: RawTurn) -> tuple[Role, ...]:
    if turn.role == "assistant":
        return ("tool", "user") if "tool_calls" in turn.more else ("user",)
    return ("assistant", "tool") if turn.role == "tool" else ("assistant",)


def _is_blank(content: object) -> bool:
    return not (content.strip() if isinstance(content, str) else content)


def _turn(turn: object, number: int, column: str) -> RawTurn:
    if not isinstance(turn, dict):
        raise RowProblem(f"turn {number} is {kind_of(turn)} where an object is expected", HINT_MESSAGES)
    keys = {key: value for key, value in turn.items() if value is not None}
    role = keys.pop("role", None) or keys.pop("from", None)
    if role is None:
        raise RowProblem(f"turn {number} has no role", HINT_MESSAGES)
    content = keys.pop("content") if "content" in keys else keys.pop("value", None)
    if not keys and isinstance(role, str) and role in ROLES:
        return RawTurn(ROLES[role], content)
    return _with_keys(role, content, keys, number, column)


def _with_keys(role: object, content: object, keys: dict[str, Any], number: int, column: str) -> RawTurn:
    """Return a turn that has more than a role and content."""
    if role in CALLING:
        role, content, keys = "assistant", None, {**keys, "tool_calls": _calls(content, number)}
    elif role in ANSWERING:
        role = "tool"
    if not isinstance(role, str) or role not in ROLES:
        found = shortened(role) if isinstance(role, str) else kind_of(role)
        raise RowProblem(f"turn {number} has the role {found}", f"known roles: {', '.join(ROLES)}")
    marks = {key: keys.pop(key) for key in LEARNED_KEYS if key in keys}
    is_learned = _is_learned(marks, ROLES[role], number)
    more = {key: keys.pop(key) for key in (*TEMPLATE_KEYS, *NAME_KEYS) if key in keys}
    _refuse_unknown(keys, number)
    more = {key: value for key, value in more.items() if value not in ("", [])}
    unused = tuple(f"{column}.{key}" for key in keys if key in SAYING_NOTHING)
    return RawTurn(ROLES[role], content, is_learned, _as_json(more) if more else "", unused)


def _is_learned(marks: dict[str, Any], role: Role, number: int) -> bool:
    for key, value in marks.items():
        if value not in (0, 1):
            found = value if isinstance(value, int | float) else kind_of(value)
            raise RowProblem(f"turn {number} ({role}): {key} is {found} where 0 or 1 is expected", "weights are 0 or 1")
        if value and role != "assistant":
            raise RowProblem(
                f"turn {number} ({role}): {key} is {json.dumps(value)}, but only assistant turns are learned",
                f"remove {key} from it",
            )
    if len({bool(value) for value in marks.values()}) > 1:
        raise RowProblem(f"turn {number} ({role}): {' and '.join(marks)} contradict each other", "keep one of them")
    return role != "assistant" or all(marks.values())


def _refuse_unknown(keys: dict[str, Any], number: int) -> None:
    for key, value in keys.items():
        if key in SAYING_NOTHING or value in ("", [], {}):
            continue
        if key in _MEDIA:
            raise RowProblem(f"turn {number} has {key} beside its content", _HINT_MEDIA)
        if key in ("from", "value"):
            raise RowProblem(f"turn {number} has both {'role' if key == 'from' else 'content'} and {key}", "keep one")
        near = difflib.get_close_matches(key.lower()[:40], ("role", "content", *LEARNED_KEYS, *TEMPLATE_KEYS), n=1)
        hint = f"did you mean {near[0]}?" if near else _HINT_KEYS
        raise RowProblem(f"turn {number} has the key {shortened(key)}, which is not known", hint)


def _calls(content: object, number: int) -> list[dict]:
    """Return the calls of a turn whose content is one, or several, as JSON."""
    example = '{"name": "crop", "arguments": {}}'
    calls = _parsed(content, f"turn {number}", example) if isinstance(content, str) else content
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, dict) and "name" in call for call in calls):
        raise RowProblem(f"turn {number} is no call of a tool", f"write {example}")
    return [{"type": "function", "function": call} for call in calls]


def _parsed(text: str, label: str, example: str) -> Any:
    try:
        return json_value(text)
    except ValueError:
        raise RowProblem(f"{label} is not valid JSON", f"write {example}") from None


def _as_json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        raise RowProblem("tools or calls hold what JSON does not know", "write them as JSON") from None
