"""Users' words in messages and names: safe to print, short, and compared with the right ones."""

import re
from pathlib import Path

MAX_SHOWN_CHARS = 60
MAX_NAME_CHARS, RUN_NAME = 100, r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Of a run's name: `experiment_name`."""


def shown(value: object, bare: bool = False) -> str:
    """A user's value for a message: control characters escaped, at most 60 characters, text in quotes unless `bare`."""
    if value is None or isinstance(value, bool):
        return {None: "empty", True: "true", False: "false"}[value]
    text = str(value)
    if len(text) > MAX_SHOWN_CHARS:
        text = text[: MAX_SHOWN_CHARS - 1] + "…"
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return f'"{text}"' if isinstance(value, str) and not bare else text


def dotted(path: tuple[str, ...]) -> str:
    """A key as users write it: `training.lora.rank`."""
    return ".".join(shown(part, bare=True) for part in path)


def nearest(word: str, words: list[str]) -> str | None:
    """The most similar of `words`, or None when none is similar."""
    from difflib import get_close_matches

    if len(word) > MAX_SHOWN_CHARS:
        return None
    found = get_close_matches(word.lower(), words, n=1, cutoff=0.6)
    return found[0] if found else None


def run_name_of(file: Path) -> str:
    """The name of a run whose config is this file, `my-run` for `my-run.yaml`; what no name may hold becomes `-`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem)[:MAX_NAME_CHARS].strip("-._") or "run"
