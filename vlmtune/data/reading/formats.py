"""Rows of every accepted shape -> `Sample`: messages, LLaVA/ShareGPT conversations, prompt + completion, columns.

Each row is recognised by itself, so shapes may be mixed in one file. Whatever a row holds, the result is a `Sample`
or a `RowProblem`, never another exception.
"""

import difflib
import math
import re
from functools import lru_cache
from typing import NamedTuple

from vlmtune.data.boxes.objects import COLUMN as OBJECTS
from vlmtune.data.boxes.rows import with_marks
from vlmtune.data.reading.answers import COLUMN as ANSWERS
from vlmtune.data.reading.answers import accepted_answers
from vlmtune.data.reading.image_refs import IMAGE_KEYS, ImageRules, image_ref, image_refs, is_utf8
from vlmtune.data.reading.misspelt import refuse_misspelt
from vlmtune.data.reading.turns import (
    HINT_MESSAGES,
    RawTurn,
    check_order,
    listed_turns,
    pairs_of_texts,
    tools_of,
    without_empty_system,
)
from vlmtune.data.reading.unread import EMPTY, refuse_mark, refuse_unread
from vlmtune.data.types import ImageRef, Role, RowProblem, Sample, Turn, count, kind_of, shortened

TURN_COLUMNS = ("messages", "conversations")
IMAGE_COLUMNS = ("images", "image", "image_path", "image_paths", "img", "file_name")
QUESTION_COLUMNS = ("question", "prompt", "query", "instruction", "input", "prefix", "problem")
ANSWER_COLUMNS = (
    "answer", "response", "completion", "output", "suffix", "target", "label", "caption", "solution",
)  # fmt: skip
CAPTION_COLUMN = "text"
"""The answer where a row has no other: captions of Hugging Face's image folders."""
KNOWN_COLUMNS = (
    *TURN_COLUMNS, *IMAGE_COLUMNS, *QUESTION_COLUMNS, *ANSWER_COLUMNS, CAPTION_COLUMN, OBJECTS, "system", "tools",
)  # fmt: skip
"""Every column that a row may mean something by."""
_TEXT_TYPES = ("text", "input_text", "output_text")
_IMAGE_TYPES = ("image", "image_url", "input_image")
_PLACEHOLDER = re.compile(r"((?:\r?\n)?<image>(?:\r?\n)?)")  # LLaVA: the line break beside <image> is not text

EXAMPLE_SIMPLE = '{"image": "photos/1.jpg", "question": "What is this?", "answer": "A cat."}'
_HINT_SIMPLE = f"a right row: {EXAMPLE_SIMPLE}"
_HINT_CAPTION = (
    "a caption or label is the answer to a question: ask one of all such rows, "
    'data.prompt: "Describe the picture.", or write one into each, in a column question'
)
_HINT_PARTS = 'a right part: {"type": "text", "text": "What is this?"} or {"type": "image", "image": "photos/1.jpg"}'

Parts = list[str | ImageRef | None]
"""Content on its way to `Turn.parts`; None stands for an image that comes from the image column."""


class ParsedRow(NamedTuple):
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
    image_column = _image_column(columns)
    images = image_refs(columns[image_column], rules) if image_column else []
    if "system" in columns:
        raw_turns = [RawTurn("system", columns["system"]), *raw_turns]
    raw_turns = without_empty_system(raw_turns)
    check_order(raw_turns)
    parts = [_parts(turn.content, f"turn {place} ({turn.role})", rules) for place, turn in enumerate(raw_turns, 1)]
    _check_indices(raw_turns)
    placed_first = _place_images([turn.role for turn in raw_turns], parts, images)
    turns = tuple(
        [Turn(turn.role, tuple(some), turn.is_learned, turn.more) for turn, some in zip(raw_turns, parts, strict=True)]
    )
    tools = tools_of(columns["tools"]) if "tools" in columns else ""
    accepted = [text for text in _accepted(columns) if text != turns[-1].text]
    sample = Sample(turns, where, number, tools, tuple(accepted))
    _check_turns(turns)
    for place, turn in enumerate(turns, 1):
        for text in turn.texts:
            if "<" in text or "[" in text:
                refuse_mark(text, f"turn {place} ({turn.role})", turn.role, bool(columns.get("objects")))
    sample, has_objects = with_marks(sample, columns.get(OBJECTS))
    used |= {OBJECTS} if has_objects else set()
    is_number = type(columns.get("label")) is int and "label" in used
    unused = columns.keys() - used - {"system", "tools", ANSWERS, image_column}
    if unused:
        refuse_misspelt(columns, unused, _absent(bool(image_column), "system" in columns))
        refuse_unread(columns, unused, sample.images)
    unused.update(*(turn.unused for turn in raw_turns))
    return ParsedRow(sample, placed_first, frozenset(unused), is_number)


def _absent(has_images: bool, has_system: bool) -> tuple[str, ...]:
    """Return the columns that a row may have and does not."""
    return (() if has_images else IMAGE_COLUMNS) + (() if has_system else ("system",))


def _without_nulls(row: dict) -> dict:
    """`row` without empty cells: Parquet files hold every column in every row."""
    return {key: value for key, value in row.items() if value is not None}


def _image_column(columns: dict) -> str | None:
    """The one column with images that this row fills; others may name the same pictures again."""
    found = None
    for name in IMAGE_COLUMNS:
        if name in columns:
            if columns[name] not in EMPTY:
                return name
            found = found or name
    return found


def _raw_turns(columns: dict) -> tuple[list[RawTurn], set[str]]:
    """The turns of a row as written, and the columns they came from."""
    found = [name for name in TURN_COLUMNS if name in columns]
    if len(found) > 1:
        found = [name for name in found if columns[name]] or found[:1]
    if len(found) > 1:
        raise RowProblem(f"{' and '.join(found)} could both be the conversation", "keep one of them")
    if found:
        return listed_turns(columns[found[0]], found[0], 1), {*found}
    if columns.get("texts") and not columns.keys() & {*QUESTION_COLUMNS, *ANSWER_COLUMNS}:
        return pairs_of_texts(columns["texts"], "texts"), {"texts"}
    prompt, completion = columns.get("prompt"), columns.get("completion")
    if isinstance(prompt, list) or isinstance(completion, list):
        first = listed_turns(prompt, "prompt", 1)
        return first + listed_turns(completion, "completion", len(first) + 1), {"prompt", "completion"}
    return _simple_turns(columns)


def _simple_turns(columns: dict) -> tuple[list[RawTurn], set[str]]:
    question, answer = _only(columns, QUESTION_COLUMNS, "question"), _only(columns, ANSWER_COLUMNS, "answer")
    if answer is None and _accepted(columns):
        columns, answer = columns | {ANSWERS: _accepted(columns)[0]}, ANSWERS
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
            hint = _hint_of_list(name) if isinstance(value, list) else _HINT_SIMPLE
            raise RowProblem(f"{name} is {found} where a string is expected", hint)
    return [RawTurn("user", columns[question]), RawTurn("assistant", text)], {question, answer}


def _accepted(columns: dict) -> list[str]:
    return accepted_answers(columns[ANSWERS]) if ANSWERS in columns else []


def _hint_of_list(name: str) -> str:
    accepted = "" if name in QUESTION_COLUMNS else f"; several right ones go into {ANSWERS}, the first is learned"
    return f"keep one of them, or write one row for each{accepted}"


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
    if "chosen" in columns:
        return "preferences are not learned: rename chosen to answer, to learn these answers alone"
    return _near_miss(tuple(columns))


@lru_cache(maxsize=1024)
def _near_miss(columns: tuple[str, ...]) -> str | None:
    known = (*TURN_COLUMNS, *IMAGE_COLUMNS, *QUESTION_COLUMNS, *ANSWER_COLUMNS)
    for name in columns:
        near = difflib.get_close_matches(name.lower()[:40], known, n=1, cutoff=0.75)
        if near and name not in known:
            return f"did you mean {near[0]} instead of {shortened(name)}?"
    return None


def _parts(content: object, label: str, rules: ImageRules) -> Parts:
    if content is None:
        return []
    if isinstance(content, str):
        return _split_text(content, label)
    if not isinstance(content, list):
        raise RowProblem(f"{label} is {kind_of(content)} where a string or a list of parts is expected", HINT_MESSAGES)
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
        _refuse_unread_keys(keys, ("type", "text"), label)
        return _split_text(keys["text"], label)
    if kind in _IMAGE_TYPES:
        _refuse_unread_keys(keys, ("type", *IMAGE_KEYS, "detail", "index"), label)
        return [image_ref(sources, label, rules)] if sources else [None]
    found = f"has the type {shortened(kind)}" if isinstance(kind, str) else "has no type"
    raise RowProblem(f"{label} {found}", _HINT_PARTS)


def _check_indices(turns: list[RawTurn]) -> None:
    """Raise where parts say by their index that they stand for another image than the next of the image column."""
    contents = (turn.content for turn in turns if isinstance(turn.content, list))
    parts = (part for content in contents for part in content if isinstance(part, dict) and part.get("type") == "image")
    for number, part in enumerate(part for part in parts if not any(part.get(key) for key in IMAGE_KEYS)):
        if part.get("index") not in (None, number):
            raise RowProblem(
                f"the image with index {part['index']} stands where the one with index {number} goes",
                "write images in the order in which the messages name them",
            )


def _refuse_unread_keys(keys: dict, known: tuple[str, ...], label: str) -> None:
    for key, value in keys.items():
        if key not in known and value not in ("", [], {}):
            hint = "sizes of images: data.image_size" if "pixels" in key or "resized" in key else _HINT_PARTS
            raise RowProblem(f"{label} has the key {shortened(key)}, which is not known", hint)


def _split_text(text: str, label: str) -> Parts:
    """`text` cut at its `<image>` placeholders."""
    if not is_utf8(text):
        raise RowProblem(f"{label} holds a broken character (half of a surrogate pair)", "write the text as UTF-8")
    if "<image>" not in text:
        return [text] if text else []
    return [None if "<image>" in piece else piece for piece in _PLACEHOLDER.split(text) if piece]


def _place_images(roles: list[Role], turns: list[Parts], images: list[ImageRef]) -> bool:
    """Fill the placeholders from the image column, in order; True when there were none and the images went first."""
    num_holes = sum([parts.count(None) for parts in turns])
    if num_holes == len(images):
        rest = iter(images)
        for parts in turns if images else ():
            parts[:] = [next(rest) if part is None else part for part in parts]
        return False
    num_own = sum(isinstance(part, ImageRef) for parts in turns for part in parts)
    if num_holes == 0 and num_own == 0:
        turns[roles.index("user")][:0] = images
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
        texts = turn.texts
        has_images, is_blank = len(texts) < len(turn.parts), not "".join(texts).strip()
        if turn.role != "user" and has_images:
            raise RowProblem(f"turn {number} ({turn.role}) holds an image", "move it to a user turn")
        if turn.role == "assistant" and is_blank and "tool_calls" not in turn.more:
            raise RowProblem(f"turn {number} (assistant) is an empty answer", "write the answer, or remove the row")
        is_empty_question = turn.role == "user" and is_blank and not has_images
        if (is_empty_question or not turn.parts) and not turn.more:
            raise RowProblem(f"turn {number} ({turn.role}) is empty", "write its text, or remove the turn")
