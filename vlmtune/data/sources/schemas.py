"""Files of one source that do not belong together, and names in `data.columns` that nothing here is called by."""

from collections.abc import Mapping, Sequence

from vlmtune.config.text import nearest, shown
from vlmtune.data.reading.arrow import arrow_columns
from vlmtune.data.reading.data_files import DataFile
from vlmtune.data.reading.files import ARROW, parquet_columns
from vlmtune.data.reading.formats import KNOWN_COLUMNS
from vlmtune.errors import VlmtuneError


def refuse_mixed(files: Sequence[DataFile], names: Sequence[str]) -> None:
    """Raise where the files of one source are of several kinds, or have other columns; `names` are the sources'.

    Rows of JSON files have no columns in common: each is recognised by itself.
    """
    for index, name in enumerate(names):
        first, *others = [file for file in files if file.source == index]
        columns = _columns(first)
        for other in others:
            if (file_kind := _kind(other)) != _kind(first):
                raise VlmtuneError(
                    f"{name} holds rows of several kinds: {first.name} ({_kind(first)}) and {other.name} ({file_kind})",
                    "name the files, as a list of sources",
                )
            if _columns(other) != columns:
                raise VlmtuneError(
                    f"{name} holds files of mixed columns: {_difference(first, other)}",
                    "name them as sources of their own, if that is meant",
                )


def _kind(file: DataFile) -> str:
    return ".json" if file.suffix.startswith(".json") else file.suffix


def _columns(file: DataFile) -> frozenset[str] | None:
    if file.suffix == ARROW:
        return frozenset(arrow_columns(file.path, file.name))
    return frozenset(parquet_columns(file.path, file.name)) if file.suffix == ".parquet" else None


def _difference(first: DataFile, other: DataFile) -> str:
    ours, theirs = _columns(first) or frozenset(), _columns(other) or frozenset()
    there, here = (ours - theirs, (first, other)) if ours - theirs else (theirs - ours, (other, first))
    listed = ", ".join(shown(column) for column in sorted(there)[:5])
    return f"{here[0].name} has {listed}, and {here[1].name} has not"


def refuse_unknown_columns(columns: Mapping[str, str]) -> None:
    """Raise where a column is to be called by a name that means nothing here."""
    for old, new in columns.items():
        if new not in KNOWN_COLUMNS:
            close = nearest(new, list(KNOWN_COLUMNS))
            raise VlmtuneError(
                f"data.columns: {shown(old, bare=True)} is to be called {shown(new)}, which means nothing here",
                f"did you mean {close}?" if close else "names that mean something: image, question, answer, messages …",
            )
