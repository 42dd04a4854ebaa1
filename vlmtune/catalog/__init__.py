"""Models whose configs are part of the package: they can be planned and estimated without the hub. No torch here."""

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from vlmtune.families import FAMILIES
from vlmtune.families.generic import ENCODER_DECODERS
from vlmtune.families.generic import NAME as GENERIC

FOLDER = Path(__file__).parent
NAMES_SHOWN = 3
NEAR = 0.6
FEWEST_CHARS = 4
"""Of the beginning of a name."""


@dataclass(frozen=True)
class Entry:
    """One model of the catalogue; index.yaml says what each field means."""

    model_id: str
    model_type: str
    family: str | None
    """Name of the family that tunes it; None for encoder-decoders, which vlmtune does not tune."""
    parameters: dict[str, int]
    """By part: vision, projector, text, head, other."""
    download_bytes: int
    download_source: str
    licence: str
    licence_source: str
    confidence: str
    source: str

    @property
    def folder(self) -> Path:
        """Where its config.json is, and its preprocessor_config.json if it has one."""
        return FOLDER / self.model_id.replace("/", "__")

    @property
    def num_parameters(self) -> int:
        """Parameters of all parts."""
        return sum(self.parameters.values())


def catalog() -> tuple[Entry, ...]:
    """Every entry, in the alphabetical order of the ids."""
    return tuple(_entries().values())


def find_entry(model_id: str) -> Entry | None:
    """The entry of a hub id in any case, or None."""
    return _entries().get(model_id.lower())


def nearest_ids(model_id: str) -> list[str]:
    """The ids of the catalogue most like this one, those of the same series first; may be empty."""
    asked, series = model_id.lower(), _series(model_id.lower())

    def likeness(name: str) -> tuple[bool, float]:
        return _is_same_series(series, _series(name)), SequenceMatcher(None, asked, name).ratio()

    found = sorted(((likeness(name), name) for name in _entries()), reverse=True)
    near = [name for (is_same, ratio), name in found if is_same or ratio >= NEAR]
    return [_entries()[name].model_id for name in near[:NAMES_SHOWN]]


def _series(model_id: str) -> str:
    """The name of a model without its owner, and without what follows the name of its series: `qwen2.5-vl`."""
    return re.split(r"-e?\d+(?:\.\d+)?[bm]\b", model_id.rpartition("/")[2])[0]


def _is_same_series(asked: str, name: str) -> bool:
    return asked == name or (len(asked) >= FEWEST_CHARS and name.startswith(asked))


@cache
def _entries() -> dict[str, Entry]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    rows = yaml.load((FOLDER / "index.yaml").read_text(encoding="utf-8"), loader)
    return {row["id"].lower(): _entry(row) for row in rows}


def _entry(row: dict[str, Any]) -> Entry:
    model_type = row["model_type"]
    other = None if model_type in ENCODER_DECODERS else GENERIC
    by_type = next((family.name for family in FAMILIES if model_type in family.model_types), other)
    return Entry(model_id=row["id"], **({"family": by_type} | {key: row[key] for key in row if key != "id"}))
