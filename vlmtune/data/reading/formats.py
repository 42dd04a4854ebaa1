"""Rows of every accepted shape -> `Sample`: messages, LLaVA/ShareGPT conversations, prompt + completion, columns.

Each row is recognised by itself, so shapes may be mixed in one file. Whatever a row holds, the result is a `Sample`
or a `RowProblem`, never another exception.
"""

import difflib
import math
import re
from dataclasses import dataclass
from functools import lru_cache

from vlmtune.data.boxes.objects import COLUMN as OBJECTS
from vlmtune.data.boxes.rows import with_marks
from vlmtune.data.reading.image_refs import IMAGE_KEYS, ImageRules, image_ref, image_refs, is_utf8
from vlmtune.data.reading.misspelt import refuse_misspelt
from vlmtune.data.types import ImageRef, Role, RowProblem, Sample, Turn, count, kind_of, shortened

TURN_COLUMNS = ("messages", "conversations")
IMAGE_COLUMNS = ("images", "image", "image_path", "image_paths", "img", "file_name")
QUESTION_COLUMNS = ("question", "prompt", "query", "instruction", "input", "prefix", "problem")
ANSWER_COLUMNS = (
    "answer", "response", "completion", "output", "suffix", "target", "label", "caption", "solution",
)  # fmt: skip
CAPTION_COLUMN = "text"
"""The answer where a row has no other: captions of Hugging Face's image folders."""
ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}

_TEXT_TYPES = ("text", "input_text", "output_text")
_IMAGE_TYPES = ("image", "image_url", "input_image")
_PLACEHOLDER = re.compile(r"((?:\r?\n)?<image>(?:\r?\n)?)")  # LLaVA: the line break beside <image> is not text

EXAMPLE_SIMPLE = '{"image": "photos/1.jpg", "question": "What is this?", "answer": "A cat."}'
EXAMPLE_MESSAGES = (
    '{"images": ["photos/1.jpg"], "messages": [{"role": "user", "content": "<image>What is this?"}, '
    '{"role": "assistant", "content": "A cat."}]}'
)
_HINT_SIMPLE = f"a right row: {EXAMPLE_SIMPLE}"
_HINT_MESSAGES = f"a right row: {EXAMPLE_MESSAGES}"
_HINT_CAPTION = (
    "a caption or label is the answer to a question: write one into every row, such as "
    '"question": "Describe the picture."'
)
_HINT_PARTS = 'a right part: {"type": "text", "text": "What is this?"} or {"type": "image", "image": "photos/1.jpg"}'

Parts = list[str | ImageRef | None]
"""Content on its way to `Turn.parts`; None stands for an image that comes from the image column."""


@dataclass(frozen=True, slots=True)
class ParsedRow:
    """A usable row, and what the notes of its file should count."""

    sample: Sample
    images_placed_first: bool
    unused_columns: frozenset[str]
    has_class_number: bool = False
    """Whether the answer is a whole number in the column `label`, which often stands for a class."""


def parse_row(row: object, where: str, rules: ImageRules, number: int = 0) -> ParsedRow:
    """The sample that a row of any accepted shape stands for; raises `RowProblem`."""
    if not isinstance(row, dict):
        raise RowProblem(f"the row is {kind_of(row)} where an object is expected", _HINT_SIMPLE)
    columns = _without_nulls(row)
    raw_turns, used = _raw_turns(columns)
    image_column = next((name for name in IMAGE_COLUMNS if name in columns), None)
    images = image_refs(columns[image_column], rules) if image_column else []
    if "system" in columns:
        raw_turns = [("system", columns["system"]), *raw_turns]
    _check_order([role for role, _ in raw_turns])
    turns = [
        (role, _parts(content, f"turn {number} ({role})", rules)) for number, (role, content) in enumerate(raw_turns, 1)
    ]
    placed_first = _place_images(turns, images)
    sample = Sample(tuple(Turn(role, tuple(parts)) for role, parts in turns), where, number)
    _check_turns(sample.turns)
    sample, has_objects = with_marks(sample, columns.get(OBJECTS))
    used |= {OBJECTS} if has_objects else set()
    is_number = type(columns.get("label")) is int and "label" in used
    unused = columns.keys() - used - {"system", image_column}
    if unused:
        refuse_misspelt(columns, unused, _absent(bool(image_column), "system" in columns))
    return ParsedRow(sample, placed_first, frozenset(unused), is_number)


def _absent(has_images: bool, has_system: bool) -> tuple[str, ...]:
    """Return the columns that a row may have and does not."""
    return (() if has_images else IMAGE_COLUMNS) + (() if has_system else ("system",))


def _without_nulls(row: dict) -> dict:
    """`row` without empty cells: Parquet files hold every column in every row."""
    return {key: value for key, value in row.items() if value is not None}


def _raw_turns(columns: dict) -> tuple[list[tuple[Role, object]], set[str]]:
    """The (role, content) pairs of a row as written, and the columns they came from."""
    for name in TURN_COLUMNS:
        if name in columns:
            return _listed_turns(columns[name], name, 1), {name}
    prompt, completion = columns.get("prompt"), columns.get("completion")
    if isinstance(prompt, list) or isinstance(completion, list):
        first = _listed_turns(prompt, "prompt", 1)
        return first + _listed_turns(completion, "completion", len(first) + 1), {"prompt", "completion"}
    return _simple_turns(columns)


def _listed_turns(value: object, name: str, first_number: int) -> list[tuple[Role, object]]:
    if not isinstance(value, list):
        raise RowProblem(f"{name} is {kind_of(value)} where a list of turns is expected", _HINT_MESSAGES)
    if not value:
        raise RowProblem(f"{name} is an empty list", _HINT_MESSAGES)
    return [_role_and_content(turn, number) for number, turn in enumerate(value, first_number)]


def _role_and_content(turn: object, number: int) -> tuple[Role, object]:
    if not isinstance(turn, dict):
        raise RowProblem(f"turn {number} is {kind_of(turn)} where an object is expected", _HINT_MESSAGES)
    keys = _without_nulls(turn)
    role = keys.get("role", keys.get("from"))
    if role is None:
        raise RowProblem(f"turn {number} has no role", _HINT_MESSAGES)
    if not isinstance(role, str) or role not in ROLES:
        found = shortened(role) if isinstance(role, str) else kind_of(role)
        raise RowProblem(f"turn {number} has the role {found}", f"known roles: {', '.join(ROLES)}")
    return ROLES[role], keys.get("content", keys.get("value"))


def _simple_turns(columns: dict) -> tuple[list[tuple[Role, object]], set[str]]:
    question, answer = _only(columns, QUESTION_COLUMNS, "question"), _only(columns, ANSWER_COLUMNS, "answer")
    if answer is None and CAPTION_COLUMN in columns and _did_you_mean(columns) is None:
        answer = CAPTION_COLUMN
    if question is None and answer is None:
        raise RowProblem(_unknown_columns(columns), _did_you_mean(columns) or _HINT_SIMPLE)
    if answer is None:
        raise RowProblem(f"{question} has no answer beside it", _did_you_mean(columns) or _HINT_SIMPLE)
    if question is None:
        raise RowProblem(f"{answer} has no question beside it", _did_you_mean(columns) or _HINT_CAPTION)
    text = columns[answer]
    if isinstance(text, int | float) and not isinstance(text, bool) and math.isfinite(text):
        text = str(text)
    for name, value in ((question, columns[question]), (answer, text)):
        if not isinstance(value, str):
            found = str(value) if isinstance(value, float) else kind_of(value)
            raise RowProblem(f"{name} is {found} where a string is expected", _HINT_SIMPLE)
    return [("user", columns[question]), ("assistant", text)], {question, answer}


def _only(columns: dict, names: tuple[str, ...], what: str) -> str | None:
    """The one column of `names` that this row fills; two are a problem, because a wrong guess costs a whole run."""
    found = [name for name in names if columns.get(name, "") != ""] or [name for name in names if name in columns]
    if len(found) > 1:
        raise RowProblem(f"{' and '.join(found)} could both be the {what}", "keep one of them, or write messages")
    return found[0] if found else None


def _unknown_columns(columns: dict) -> str:
    if not columns:
        return "the row has no columns"
    names = ", ".join(shortened(name) for name in list(columns)[:8]) + (", ..." if len(columns) > 8 else "")
    return f"no known columns; found {names}"


def _did_you_mean(columns: dict) -> str | None:
    return _near_miss(tuple(columns))


@lru_cache(maxsize=1024)
def _near_miss(columns: tuple[str, ...]) -> str | None:
    known = (*TURN_COLUMNS, *IMAGE_COLUMNS, *QUESTION_COLUMNS, *ANSWER_COLUMNS)
    for name in columns:
        near = difflib.get_close_matches(name.lower()[:40], known, n=1, cutoff=0.75)
        if near and name not in known:
            return f"did you mean {near[0]} instead of {shortened(name)}?"
    return None


def _check_order(roles: list[Role]) -> None:
    expected: Role = "user"
    for number, role in enumerate(roles, 1):
        if role == "system" and number == 1:
            continue
        if role != expected:
            raise RowProblem(
                f"turn {number} is {role} where {expected} is expected",
                "turns alternate: system (optional), user, assistant, user, assistant, ...",
            )
        expected = "assistant" if role == "user" else "user"
    if roles[-1] != "assistant":
        raise RowProblem(
            f"the last turn is {roles[-1]}: there is no answer to learn", "end every row with an assistant turn"
        )


def _parts(content: object, label: str, rules: ImageRules) -> Parts:
    if content is None:
        return []
    if isinstance(content, str):
        return _split_text(content, label)
    if not isinstance(content, list):
        raise RowProblem(f"{label} is {kind_of(content)} where a string or a list of parts is expected", _HINT_MESSAGES)
    parts: Parts = []
    for number, part in enumerate(content, 1):
        parts += _content_part(part, f"{label}, part {number}", rules)
    return parts


def _content_part(part: object, label: str, rules: ImageRules) -> Parts:
    if not isinstance(part, dict):
        raise RowProblem(f"{label} is {kind_of(part)} where an object is expected", _HINT_PARTS)
    keys = _without_nulls(part)
    sources = {key: keys[key] for key in IMAGE_KEYS if key in keys}
    kind = keys.get("type", "text" if "text" in keys else "image" if sources else None)
    if kind in _TEXT_TYPES:
        if not isinstance(keys.get("text"), str):
            raise RowProblem(f"{label}: text is {kind_of(keys.get('text'))} where a string is expected", _HINT_PARTS)
        return _split_text(keys["text"], label)
    if kind in _IMAGE_TYPES:
        return [image_ref(sources, label, rules)] if sources else [None]
    found = f"has the type {shortened(kind)}" if isinstance(kind, str) else "has no type"
    raise RowProblem(f"{label} {found}", _HINT_PARTS)


def _split_text(text: str, label: str) -> Parts:
    """`text` cut at its `<image>` placeholders."""
    if not is_utf8(text):
        raise RowProblem(f"{label} holds a broken character (half of a surrogate pair)", "write the text as UTF-8")
    if "<image>" not in text:
        return [text] if text else []
    return [None if "<image>" in piece else piece for piece in _PLACEHOLDER.split(text) if piece]


def _place_images(turns: list[tuple[Role, Parts]], images: list[ImageRef]) -> bool:
    """Fill the placeholders from the image column, in order; True when there were none and the images went first."""
    num_holes = sum(part is None for _, parts in turns for part in parts)
    if num_holes == len(images):
        rest = iter(images)
        for _, parts in turns:
            parts[:] = [next(rest) if part is None else part for part in parts]
        return False
    num_own = sum(isinstance(part, ImageRef) for _, parts in turns for part in parts)
    if num_holes == 0 and num_own == 0:
        next(parts for role, parts in turns if role == "user")[:0] = images
        return True
    if num_holes == 0:
        raise RowProblem(
            f"{count(len(images), 'image')} in the image column beside {num_own} in the messages",
            "keep one of the two, or write <image> where the others belong",
        )
    raise RowProblem(
        f"{count(len(images), 'image')} but {count(num_holes, '<image> placeholder')}",
        "write one <image> for every image, or none to place the images first",
    )


def _check_turns(turns: tuple[Turn, ...]) -> None:
    for number, turn in enumerate(turns, 1):
        if turn.role != "user" and not all(isinstance(part, str) for part in turn.parts):
            raise RowProblem(f"turn {number} ({turn.role}) holds an image", "move it to a user turn")
        if turn.role == "assistant" and not turn.text.strip():
            raise RowProblem(f"turn {number} (assistant) is an empty answer", "write the answer, or remove the row")
        if not turn.parts:
            raise RowProblem(f"turn {number} ({turn.role}) is empty", "write its text, or remove the turn")
