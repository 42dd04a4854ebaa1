"""Rows with the columns that they have here.

Those renamed by `data.columns`, the question of `data.prompt`, and the members of a WebDataset's tar.
"""

from collections import Counter
from collections.abc import Mapping

from vlmtune.data.reading.formats import QUESTION_COLUMNS, TURN_COLUMNS
from vlmtune.data.types import RowProblem, shortened

TAR_KEY, TAR_URL = "__key__", "__url__"
"""What `datasets` puts beside the members of a sample in a tar."""
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif")
_JSON = ("json", "jsn")


def renamed(row: object, columns: Mapping[str, str], counted: Counter[str]) -> object:
    """Return a row with its columns renamed; `counted` notes each that was there.

    Raises:
        RowProblem: the row has a column of the new name too.
    """
    if not columns or not isinstance(row, dict):
        return row
    there = {old: new for old, new in columns.items() if row.get(old) is not None}
    counted.update(there.keys())
    kept = {name: value for name, value in row.items() if name not in there}
    for old, new in there.items():
        if kept.get(new) is not None:
            hint = "remove one of them, or change data.columns"
            raise RowProblem(f"{shortened(old)} becomes {new} (data.columns), and the row has a {new} already", hint)
        kept[new] = row[old]
    return kept


def with_prompt(row: object, prompt: str | None) -> object:
    """Return a row with this question, where it has an answer and nothing is asked."""
    if prompt is None or not isinstance(row, dict):
        return row
    filled = {name for name, value in row.items() if value not in (None, "", [])}
    return row if filled & {*QUESTION_COLUMNS, *TURN_COLUMNS, "texts"} else row | {"question": prompt}


def members(row: object) -> object:
    """Return a row of a WebDataset with its pictures as images and the keys of its JSON as columns; others as they are.

    A sample `12.jpg`, `12.json` is the row that the JSON holds, with that picture; `12.txt` is a column `txt`.
    """
    if not isinstance(row, dict) or not {TAR_KEY, TAR_URL} <= row.keys():
        return row
    inside = {name: value for name, value in row.items() if name not in (TAR_KEY, TAR_URL) and value is not None}
    pictures = [name for name in sorted(inside) if f".{name}".lower().endswith(_PICTURES)]
    columns = {name: value for name, value in inside.items() if name not in pictures}
    for name in _JSON:
        if isinstance(columns.get(name), dict):
            columns |= columns.pop(name)
    if pictures:
        columns["images"] = [inside[name] for name in pictures]
    return columns
