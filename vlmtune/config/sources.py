"""Mistakes in a source of rows, in words: which one, which of its keys, and what is allowed there."""

from pydantic import ValidationError

from vlmtune.config.keys import keys_of
from vlmtune.config.sections import SourceSection
from vlmtune.config.text import nearest, shown

EXAMPLE = 'a source: {path: "shards/*.parquet"} or {name: org/data, split: train}'


def source_problem(value: object) -> tuple[str, str] | None:
    """Return what is wrong with the first wrong source of a value, and a hint; None where it is no list of them."""
    sources = value if isinstance(value, list | tuple) else [value]
    if not sources:
        return " is a list without a source", "name a file, or remove the line"
    for number, source in enumerate(sources, 1):
        if isinstance(source, str) and source:
            continue
        label = f", source {number}: " if isinstance(value, list | tuple) else ": "
        if not isinstance(source, dict):
            return (f"{label}{shown(source)} is neither a path nor a source", EXAMPLE) if len(sources) > 1 else None
        if problem := _problem_of(source):
            return f"{label}{problem[0]}", problem[1]
    return None


def _problem_of(source: dict) -> tuple[str, str] | None:
    try:
        SourceSection.model_validate(source)
        return None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return first["msg"].removeprefix("Value error, "), EXAMPLE
    keys, name = {key.name: key for key in keys_of(SourceSection)}, str(first["loc"][0])
    if name not in keys:
        close = nearest(name, list(keys))
        names = ", ".join(keys)
        return f"{shown(name, bare=True)} is not a key of a source", f"did you mean {close}?" if close else names
    return f"{name} must be {keys[name].allowed}, not {shown(source[name])}", keys[name].meaning
