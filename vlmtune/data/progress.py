"""How long work on many rows tells how far it is, without knowing to whom."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[int], None]
Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""(what is done, how much of it there is) -> what to call with each amount that is done."""


def nobody(amount: int) -> None:
    """Be told of an amount of work by whom nobody asked."""


@contextmanager
def silent(what: str, total: int) -> Iterator[Advance]:
    """Tell nobody."""
    yield nobody
