"""Rich's console as vlmtune writes to it: the one on which nothing but its own styles does something to the terminal.

Imported inside the functions that print: rich takes time.
"""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from vlmtune.printing import printable


class SafeConsole(Console):
    """A console that neither colours words it recognises nor reads `[…]` as markup, and writes text `printable`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"highlight": False, "markup": False, "emoji": False} | options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of what is printed; those with text in a form that does nothing to the terminal."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)
