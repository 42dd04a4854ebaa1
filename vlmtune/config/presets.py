"""The presets: partial configs in vlmtune/presets/, one for each size of card. Without pydantic, to be fast."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vlmtune.config.reader import Document, read_text, yaml_of
from vlmtune.config.text import nearest, shown
from vlmtune.errors import VlmtuneError

FOLDER = Path(__file__).parent.parent / "presets"
ALIASES = {"ultra_low_memory": "8gb"}


@dataclass(frozen=True)
class Preset:
    """What a preset's file says: the comments at its top and its values."""

    name: str
    card: str
    model: str
    """A model that suits the card, and no smaller one."""
    values: dict[str, dict]
    text: str
    """The whole file, comments included."""


@cache
def names() -> tuple[str, ...]:
    """The presets, smallest card first."""
    return tuple(sorted((file.stem for file in FOLDER.glob("*.yaml")), key=lambda name: int(name.removesuffix("gb"))))


def find(name: str) -> Preset:
    """The preset of that name or alias; an unknown one raises with the nearest."""
    own_name = ALIASES.get(name.lower(), name.lower())
    if own_name not in names():
        close = nearest(name, [*names(), *ALIASES])
        did_you_mean = f"did you mean {close}? " if close else ""
        raise VlmtuneError(
            f"preset {shown(name, bare=True)} is unknown", f"{did_you_mean}there are {', '.join(names())}"
        )
    text = (FOLDER / f"{own_name}.yaml").read_text(encoding="utf-8")
    facts = dict(line[2:].split(": ", 1) for line in text.splitlines()[:2])
    return Preset(own_name, facts["Card"], facts["Suits"], read_text(text, f"preset {own_name}").values, text)


def for_card(nominal_bytes: int) -> str:
    """The largest preset whose card is no larger than this one; the smallest where none is."""
    fitting = [name for name in names() if _nominal_bytes(name) <= nominal_bytes]
    return fitting[-1] if fitting else names()[0]


def _nominal_bytes(name: str) -> int:
    return int(name.removesuffix("gb")) * 2**30


def document(name: str) -> Document:
    """The preset's values as a layer of a config; its lines are not the user's, so it has none."""
    preset = find(name)
    return Document(f"preset {preset.name}", preset.values)


def starting_config(name: str, run_name: str) -> str:
    """A complete config with the preset's values and comments, to be filled in with the user's data."""
    preset = find(name)
    head, data, rest = preset.text.partition("data:\n")
    return (
        f"# A run made from the preset {preset.name}. First change the lines marked <--, then: vlmtune validate FILE\n"
        f"{head}{yaml_of({'experiment_name': run_name})}  # the run folder is runs/{run_name}\n\n"
        f"model:\n  name: {preset.model}\n\n"
        f"{data}  train_path: train.jsonl  # <-- your rows, relative to this file\n"
        f"  # val_path: val.jsonl\n{rest}"
    )
