"""Markdown in a terminal: what is too long for its column of a table goes on in the next line, none of it is lost."""

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions
from rich.markdown import Markdown, TableElement
from rich.table import Table


class _FoldedTable(TableElement):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        for table in super().__rich_console__(console, options):
            for column in table.columns:
                column.overflow = "fold"
            yield table


class FoldedMarkdown(Markdown):
    """Rich's Markdown, whose tables end words that are too long with an ellipsis."""

    elements = {**Markdown.elements, "table_open": _FoldedTable}
