"""The formats of plan.json: how the plan of an older vlmtune becomes one of today.

A new field of RunPlan with a default needs nothing here: a plan without it was made before there was a choice. A field
that is renamed, removed or means something else needs a migration at the end of the list. Entries are never changed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Values = dict[str, Any]
"""plan.json without its version."""


@dataclass(frozen=True)
class Migration:
    """The step from one format to the next."""

    from_version: int
    name: str
    change: Callable[[Values], Values]


MIGRATIONS = (Migration(0, "0.1.0 wrote no version", dict),)
VERSION = len(MIGRATIONS)
"""The format that is written."""


def migrate(values: Values, version: int) -> Values:
    """Return the values of a plan of format `version` as today's format has them."""
    for migration in MIGRATIONS[version:]:
        values = migration.change(values)
    return values
