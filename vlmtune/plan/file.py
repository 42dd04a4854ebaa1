"""plan.json: a plan as a file that every later version reads."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vlmtune.errors import VlmtuneError
from vlmtune.files import json_value, parse_json, relative_path, strict_json, write_json
from vlmtune.plan.migrations import VERSION, Values, migrate
from vlmtune.plan.types import RunPlan
from vlmtune.reading import JSON_BYTES, read_regular

_OF_A_PART = r"[\w.]+\\\.(\(\?!\([\w.|]+\)\\\.\))?\.\*\\\.\([\w.|]+\)"
TARGETS = re.compile(rf"{_OF_A_PART}(\|{_OF_A_PART})?")
"""How `lora_targets` is written: other patterns may take for ever to be matched, and runs are shared."""
FOLDERS = ("model", "adapter")
"""Fields that name a folder: in the file relative to it, so that a run folder can be shared."""
SHA256 = "sha256"
"""Key of the digest of all others: a changed digit would be a plan too, and answers would be other ones."""
OTHER_KEYS = ("missing", "unexpected_keyword_argument")
"""Pydantic's types of errors about keys, not about values."""


def save_plan(plan: RunPlan, path: Path) -> None:
    """Write the plan as JSON."""
    values: dict[str, Any] = {"version": VERSION, **dataclasses.asdict(plan)}
    for name in FOLDERS:
        if Path(values[name]).is_absolute():
            values[name] = relative_path(Path(values[name]), path.parent)
    write_json(path, values | {SHA256: _digest(values)})


def load_plan(path: Path) -> RunPlan:
    """Return the plan that `save_plan` of this or an older vlmtune wrote.

    Raises:
        VlmtuneError: the file is damaged, or a newer vlmtune wrote it.
    """
    plan = _checked(_todays_values(path), path)
    places = {name: (path.parent / value).resolve() for name in FOLDERS if (value := getattr(plan, name))}
    return dataclasses.replace(plan, **{name: str(place) for name, place in places.items() if place.is_dir()})


def _todays_values(path: Path) -> Values:
    """Return what the file holds, as today's format has it."""
    try:
        values = dict(json_value(read_regular(path, JSON_BYTES, own=True)))
    except (ValueError, TypeError):
        raise _damaged(path) from None
    written = values.pop(SHA256, None)
    if written is not None and written != _digest(values):
        raise _damaged(path, f"it is not what was written; who has changed it on purpose deletes its {SHA256}")
    version = values.pop("version", 0)
    if type(version) is not int or version < 0:
        raise _damaged(path, "version is no whole number")
    if version > VERSION:
        raise VlmtuneError(
            f"{path} was written by a newer vlmtune: its format is {version}, this vlmtune reads up to {VERSION}",
            "update vlmtune, or train again",
        )
    return migrate(values, version)


def _digest(values: Values) -> str:
    return hashlib.sha256(strict_json(values).encode()).hexdigest()


def _checked(values: Values, path: Path) -> RunPlan:
    """Return the values as a plan: keys that are missing have their defaults, others are refused."""
    try:
        plan = parse_json(RunPlan, json.dumps(values), unknown_keys="forbid")
        if plan.lora_targets is not None and not TARGETS.fullmatch(plan.lora_targets):
            raise _damaged(path, "lora_targets is no pattern that vlmtune writes")
        return plan
    except ValidationError as error:
        problems = error.errors(include_url=False)
    other_keys = [_place(problem) for problem in problems if problem["type"] in OTHER_KEYS]
    if other_keys:
        raise VlmtuneError(
            f"plan.json was written by another version of vlmtune: keys that differ: {', '.join(sorted(other_keys))}",
            "use the version named in versions.json, or train again",
        )
    raise _damaged(path, "; ".join(f"{_place(problem)}: {problem['msg']}" for problem in problems))


def _place(problem: Any) -> str:
    return ".".join(map(str, problem["loc"]))


def _damaged(path: Path, what: str = "") -> VlmtuneError:
    return VlmtuneError(f"{path} is damaged{f': {what}' if what else ''}", "delete the run folder and train again")
