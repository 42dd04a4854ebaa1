"""YAML text → plain values with line numbers, and back.

Stricter than PyYAML: YAML 1.2, no tags, anchors or duplicate keys. Works on parser events, not on PyYAML's
constructors: nothing a file can say creates an object, expands an alias or recurses deeper than `MAX_DEPTH`.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from vlmtune.config.text import dotted, shown
from vlmtune.errors import VlmtuneError
from vlmtune.reading import YAML_BYTES, read_regular

MAX_DEPTH = 20
HINT_CONFIG = "give the path of a config file; `vlmtune presets copy 8gb my-run.yaml` writes one"

# The YAML 1.2 core schema: `no`, `on` and `12:30` are text, `1e-4` is a number.
WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
INTEGER = re.compile(r"[-+]?[0-9]{1,400}")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
INFINITY_OR_NAN = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

NO_CONFIG = "a config is a YAML file of a few dozen lines; rows have their own file"

KeyPath = tuple[str, ...]


class Refused:
    """Stands where a value was written that has been reported already, so that it is not reported twice."""


@dataclass
class Document:
    """One YAML mapping: its values, the line of each key (1-based) and the mistakes that did not stop the reading."""

    name: str
    values: dict[str, object] = field(default_factory=dict)
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[tuple[int, VlmtuneError]] = field(default_factory=list)

    def line(self, path: KeyPath) -> int:
        """The line of a key, or a number past the last line."""
        return self.lines.get(path, sys.maxsize)

    def where(self, path: KeyPath) -> str:
        """`file:line` of a key, or of the nearest group around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.name}:{self.lines[path]}" if path else self.name

    def add(self, line: int, message: str, hint: str) -> None:
        """Note a mistake on `line`."""
        self.problems.append((line, VlmtuneError(f"{message}  ({self.name}:{line})", hint)))


def read_file(path: Path) -> Document:
    """The mapping in a YAML file. Raises on what cannot be read at all; lesser mistakes are in `problems`."""
    name = str(path)
    try:
        raw = read_regular(path, YAML_BYTES, hint=NO_CONFIG)
    except FileNotFoundError:
        raise VlmtuneError(
            f"{name} does not exist",
            HINT_CONFIG,
        ) from None
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise VlmtuneError(f"{name} is not UTF-8 text  ({name}:{line})", "save it as UTF-8") from None
    document = read_text(text, name)
    if not document.values and not document.problems:
        raise VlmtuneError(f"{name} is empty", "start from `vlmtune presets copy 8gb FILE`")
    return document


def read_text(text: str, name: str) -> Document:
    """The mapping in a YAML text; `name` is what error messages call it."""
    document = Document(name)
    value = _read_value(text, document, mapping_only=True)
    if isinstance(value, dict):
        document.values = value
    return document


def read_scalar(text: str) -> object:
    """The value of a `--set` argument, read as YAML; raises on anything that a file may not hold either."""
    document = Document("the value")
    value = _read_value(text, document, mapping_only=False)
    if document.problems:
        raise document.problems[0][1]
    return value


def _read_value(text: str, document: Document, mapping_only: bool) -> object:
    builder = _Builder(document)
    events = _events(text, document.name)
    value: object = {} if mapping_only else None
    for event in events:
        if isinstance(event, DocumentStartEvent):
            first = next(events)
            if mapping_only and not isinstance(first, MappingStartEvent) and not _is_empty(first):
                line = first.start_mark.line + 1
                raise VlmtuneError(
                    f"{document.name} must hold `key: value` lines, not {_kind(first)}  ({document.name}:{line})",
                    "compare it with configs/8gb.yaml",
                )
            value = builder.build(first, events, ())
            break
    for event in events:
        if isinstance(event, DocumentStartEvent):
            document.add(event.start_mark.line + 1, "a second YAML document starts here", "keep one run in one file")
            break
        if isinstance(event, StreamEndEvent):
            break
    return value


class _Builder:
    """Turns parser events into values and notes what is refused."""

    def __init__(self, document: Document) -> None:
        self.document = document

    def build(self, event: Event, events: Iterator[Event], path: KeyPath) -> object:
        """The value that starts with `event`; reads on to its end."""
        line = event.start_mark.line + 1
        if len(path) > MAX_DEPTH:
            raise VlmtuneError(
                f"{self.document.name} is nested more than {MAX_DEPTH} levels deep  ({self.document.name}:{line})",
                "a config has three levels at most",
            )
        if isinstance(event, AliasEvent):
            alias = shown(event.anchor, bare=True)
            self.document.add(line, f"the alias *{alias} is not allowed", "write the value itself")
            return Refused
        if event.anchor is not None:
            anchor = shown(event.anchor, bare=True)
            self.document.add(line, f"the anchor &{anchor} is not allowed", "write the value where it is needed")
        value = self._value(event, events, path)
        if event.tag is None:
            return value
        tag = shown(event.tag.replace("tag:yaml.org,2002:", "!!"), bare=True)
        self.document.add(line, f"the tag {tag} is not allowed", "write the plain value")
        return Refused

    def _value(self, event: Event, events: Iterator[Event], path: KeyPath) -> object:
        if isinstance(event, MappingStartEvent):
            return self._mapping(events, path)
        if isinstance(event, SequenceStartEvent):
            return self._sequence(events, path)
        return self._scalar(event)

    def _mapping(self, events: Iterator[Event], path: KeyPath) -> dict[str, object]:
        values: dict[str, object] = {}
        first_lines: dict[str, int] = {}
        while not isinstance(event := next(events), MappingEndEvent):
            line = event.start_mark.line + 1
            key = event.value if isinstance(event, ScalarEvent) else None
            if key is None or event.tag is not None or event.anchor is not None:
                self.build(event, events, (*path, "?"))
            value = self.build(next(events), events, (*path, key or "?"))
            if key is None:
                self.document.add(line, "a key must be a plain word", "compare it with configs/all-keys.yaml")
            elif key in first_lines:
                self.document.add(
                    line, f"{dotted((*path, key))} is given twice, first on line {first_lines[key]}", "keep one of them"
                )
            else:
                first_lines[key] = self.document.lines[(*path, key)] = line
                values[key] = value
        return values

    def _sequence(self, events: Iterator[Event], path: KeyPath) -> object:
        values = []
        while not isinstance(event := next(events), SequenceEndEvent):
            values.append(self.build(event, events, (*path, "-")))
        return Refused if Refused in values else values

    def _scalar(self, event: ScalarEvent) -> object:
        text = event.value
        if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
            self.document.add(
                event.start_mark.line + 1, f"{shown(text)} holds a character that is not text", "remove the escape"
            )
            return Refused
        return text if event.style else plain_scalar(text)


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes that is a number under YAML 1.2, as `1e5`, and characters that PyYAML would fold."""


def _represented(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None if isinstance(plain_scalar(text), str) and text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represented)


def yaml_of(values: dict[str, object]) -> str:
    """YAML text that reads back as these values, a line each; without the last line's end."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=YAML_BYTES).rstrip("\n")


def plain_scalar(text: str) -> object:
    """The value of an unquoted word under YAML 1.2."""
    if text in WORDS:
        return WORDS[text]
    if INTEGER.fullmatch(text):
        return int(text)
    if FLOAT.fullmatch(text):
        return float(text)
    if INFINITY_OR_NAN.fullmatch(text):
        return float(text.replace(".", "", 1))
    return text


def _events(text: str, name: str) -> Iterator[Event]:
    """The parser's events; what is not YAML becomes one error with its line."""
    try:
        yield from yaml.parse(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        message = f"{name} is not YAML: {shown(error.problem or error.context, bare=True)}  ({name}:{line})"
        raise VlmtuneError(message, _syntax_hint(text, line)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"{name} holds the character {error.character:#x}, which YAML does not allow  ({name}:{line})"
        raise VlmtuneError(message, "remove it") from None
    except (ValueError, OverflowError):
        # PyYAML passes "\UFFFFFFFF" to chr() unchecked.
        raise VlmtuneError(f"{name} holds an escape that is no character", "look for a \\U in quotes") from None


def _syntax_hint(text: str, line: int) -> str:
    rows = text.splitlines()
    row = rows[line - 1] if 0 < line <= len(rows) else ""
    if "\t" in row:
        return "indent with spaces: YAML does not allow tabs"
    return f"look at line {line} and the one before it: a missing colon, quote or indent"


def _is_empty(event: Event) -> bool:
    return isinstance(event, ScalarEvent) and not event.style and event.value in ("", "~", "null") and event.tag is None


def _kind(event: Event) -> str:
    return "a list" if isinstance(event, SequenceStartEvent) else "a single value"
