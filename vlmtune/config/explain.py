"""Mistakes in a config, in words: unknown keys with the right one, wrong values with what is allowed."""

from vlmtune.config.keys import REQUIRED, Key, all_keys, section_docs
from vlmtune.config.sources import source_problem
from vlmtune.config.text import dotted, nearest, shown
from vlmtune.config.words import NOT_HERE, NOTES, RENAMED
from vlmtune.errors import VlmtuneError

KeyPath = tuple[str, ...]
SOURCES = (("data", "train_path"), ("data", "val_path"))


def unknown_key(path: KeyPath, where: str) -> VlmtuneError:
    """The error for a key that the schema does not have."""
    return VlmtuneError(f"{dotted(path)} is not a known key  ({where})", _right_key(path))


def wrong_value(key: Key, value: object, where: str) -> VlmtuneError:
    """The error for a value that the key does not allow."""
    if key.path in SOURCES and (problem := source_problem(value)):
        return VlmtuneError(f"{key.name}{problem[0]}  ({where})", problem[1])
    return VlmtuneError(f"{key.name} must be {key.allowed}, {_but(key, value)}  ({where})", _right_value(key, value))


def not_a_group(path: KeyPath, value: object, where: str) -> VlmtuneError:
    """The error for a plain value where a group of keys belongs."""
    inner = [key.path[-1] for key in all_keys() if key.path[:-1] == path]
    return VlmtuneError(
        f"{dotted(path)} must be a group of keys, not {_described(value)}  ({where})",
        f"put keys below it, indented: {', '.join(inner)}",
    )


def missing_key(path: KeyPath, where: str) -> VlmtuneError:
    """The error for a required key that was not given."""
    example = {("model", "name"): "Qwen/Qwen3-VL-2B-Instruct", ("data", "train_path"): "train.jsonl"}[path]
    return VlmtuneError(
        f"{dotted(path)} is missing  ({where})", f"under `{path[0]}:` add the line `  {path[1]}: {example}`"
    )


def _right_key(path: KeyPath) -> str:
    word, group = path[-1], path[:-1]
    names = [key.name for key in all_keys()] + [dotted(section) for section in section_docs()]
    if "." in word and word in names:
        return f"write it in its group, or on the command line as --set {word}=…"
    by_leaf: dict[str, list[str]] = {}
    for name in names:
        by_leaf.setdefault(name.rsplit(".", 1)[-1], []).append(name)
    in_group = [name.rsplit(".", 1)[-1] for name in names if tuple(name.split(".")[:-1]) == group]
    if word in by_leaf:
        return f"did you mean {by_leaf[word][0]}?"
    if word.lower() in RENAMED:
        right = RENAMED[word.lower()]
        note = f" ({NOTES[right]})" if right in NOTES else ""
        return f"that is `{right}` here{note}"
    if word.lower() in NOT_HERE:
        return NOT_HERE[word.lower()]
    if close := nearest(word, in_group):
        return f"did you mean {dotted((*group, close))}?"
    if close := nearest(word, list(by_leaf)):
        return f"did you mean {by_leaf[close][0]}?"
    return f"remove it; the keys {f'of {dotted(group)}' if group else 'at the top'} are {', '.join(in_group)}"


def _described(value: object) -> str:
    if isinstance(value, dict):
        return "a group of keys"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return f"the text {shown(value)}"
    return shown(value)


def _but(key: Key, value: object) -> str:
    if value is None or value == "":
        return "but it is empty"
    if key.choices and isinstance(value, str):
        return f"not {shown(value, bare=True)}"
    if others := _other_items(key, value):
        return f"not {shown(others[0], bare=True)}"
    return f"not {_described(value)}"


def _other_items(key: Key, value: object) -> list[object]:
    """Return what a list holds and may not hold."""
    return [item for item in value if item not in key.items] if key.items and isinstance(value, list) else []


def _right_value(key: Key, value: object) -> str:
    if value is None and key.default is not REQUIRED:
        return f"give a value, or remove the line: the default is {shown(key.default, bare=True)}"
    if key.json_type == "string" and isinstance(value, bool | int | float) and not key.choices:
        return f'put it in quotes: {key.path[-1]}: "{shown(value)}"'
    if isinstance(value, str):
        if key.choices and (close := nearest(value, list(key.choices))):
            return f"did you mean {close}?"
        if key.json_type == "boolean" and value.lower() in ("yes", "no", "on", "off"):
            return f"write {'true' if value.lower() in ('yes', 'on') else 'false'}"
        if key.json_type in ("integer", "number") and value.replace(".", "", 1).isdigit():
            return "remove the quotes"
    if key.items:
        others = _other_items(key, value) or [value]
        close = nearest(str(others[0]), list(key.items))
        return f"write it as {key.path[-1]}: [{close or key.items[0]}]"
    if key.json_type == "object":
        return f"write it as {key.path[-1]}: {{caption_en: answer}}"
    return key.meaning if key.default in (None, REQUIRED) else f"{key.meaning} Default: {shown(key.default, bare=True)}"
