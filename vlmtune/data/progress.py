"""How long work on many rows tells how far it is, without knowing to whom."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[int], None]
Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""(what is done, how much of it there is) -> what to call with each amount that is done."""


@contextmanager
def silent(what: str, total: int) -> Iterator[Advance]:
    """Tell nobody."""
    yield lambda amount: None
