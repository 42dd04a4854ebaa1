"""Class numbers in Parquet files of Hugging Face's `datasets` -> the names that the file's features give them."""

from collections.abc import Callable, Mapping
from typing import Any

from vlmtune.data.types import RowProblem
from vlmtune.files import json_value

METADATA_KEY = b"huggingface"
NO_LABEL = -1
"""What `datasets` writes where a row has no class."""
Named = Callable[[Any], Any]
"""Value of a column -> the same with names for class numbers; raises `RowProblem`."""


def named_columns(metadata: Mapping[bytes, bytes] | None) -> dict[str, Named]:
    """Columns of a Parquet file that hold class numbers, by the metadata of its schema, and what names them."""
    try:
        features = json_value((metadata or {}).get(METADATA_KEY, b"{}"))["info"]["features"]
    except (ValueError, LookupError, TypeError):
        return {}
    return _named_inside(features, "") if isinstance(features, dict) else {}


def _named_inside(features: dict, beginning: str) -> dict[str, Named]:
    found = {key: _named(feature, beginning + key) for key, feature in features.items()}
    return {key: _of_each(named) for key, named in found.items() if named}


def _named(feature: object, column: str) -> Named | None:
    """What names the classes in one value of a feature; None where it holds none."""
    if isinstance(feature, list) and len(feature) == 1:
        return _named(feature[0], column)
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") == "ClassLabel":
        return _by_number(feature["names"], column) if feature.get("names") else None
    if "_type" in feature:
        return _named(feature.get("feature"), column)
    inside = _named_inside(feature, f"{column}.")
    return _in_object(inside) if inside else None


def _by_number(names: list[str], column: str) -> Named:
    def named(value: Any) -> Any:
        if value is None or value == NO_LABEL:
            return None
        if not isinstance(value, int) or not 0 <= value < len(names):
            raise RowProblem(f"{column} is {value}, and the file names {len(names)} classes", "correct the number")
        return names[value]

    return named


def _in_object(inside: dict[str, Named]) -> Named:
    return lambda value: (
        {key: inside[key](one) if key in inside else one for key, one in value.items()}
        if isinstance(value, dict)
        else value
    )


def _of_each(named: Named) -> Named:
    """For each value of a list too: `datasets` writes a list of objects as a list, or as one object of lists."""

    def of_each(value: Any) -> Any:
        return [of_each(one) for one in value] if isinstance(value, list) else named(value)

    return of_each
