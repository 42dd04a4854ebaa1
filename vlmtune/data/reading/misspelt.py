"""Columns of a row that are not used because their names are misspelt: a run would train without its images."""

import difflib
from collections.abc import Collection
from functools import lru_cache

from vlmtune.data.types import RowProblem, shortened

MEANT = {"system": ("system_prompt", "system_message", "sys_prompt", "sysprompt")}
"""Names of other tools that are near to none of ours."""
NEAR = 0.85


def refuse_misspelt(row: dict, unused: Collection[str], absent: tuple[str, ...]) -> None:
    """Raise `RowProblem` where a column that is not used has nearly the name of one that the row does not have.

    `absent` are the names that it could mean.
    """
    for name in unused:
        meant = _meant_by(name, absent)
        if meant and row[name] not in ("", b"", [], {}):
            hint = f"did you mean {meant}? Rename the column, or remove it"
            raise RowProblem(f"the column {shortened(name)} is not known", hint)


@lru_cache(maxsize=1024)
def _meant_by(name: str, absent: tuple[str, ...]) -> str | None:
    low = name.lower()[:40]
    for known in absent:
        if low == known or low in MEANT.get(known, ()) or sorted(low) == sorted(known):
            return known
        is_longer = low.startswith(known) or known.startswith(low)  # image_id is another column
        if low[:1] == known[0] and not is_longer and difflib.SequenceMatcher(None, low, known).ratio() >= NEAR:
            return known
    return None
