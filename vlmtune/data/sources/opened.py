"""Sources as the config names them -> the files that their rows are read from.

JSON Lines, JSON and Parquet are read as they are. Everything else becomes Arrow files of `datasets`, which is imported
for nothing but that.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmtune.config.sections import SourceSection
from vlmtune.data.reading.data_files import DataFile, DataFiles, FoundFile, Source, names_of
from vlmtune.data.reading.image_refs import ImageRules
from vlmtune.data.samples import check_image_dir
from vlmtune.data.sources.found import files_at
from vlmtune.data.sources.schemas import refuse_mixed, refuse_unknown_columns
from vlmtune.files import file_sha256, text_sha256


@dataclass(frozen=True)
class Settings:
    """How the rows of a config are read, whatever source they are in."""

    resolve: Callable[[str], Path]
    """A path of the config as the file system sees it."""
    image_dir: str | None = None
    allow_urls: bool = False
    columns: Mapping[str, str] | None = None
    prompt: str | None = None


def sections_of(value: object) -> tuple[SourceSection, ...]:
    """Return what a key of the config holds as a list of sources."""
    several = value if isinstance(value, tuple) else (value,)
    return tuple(SourceSection(path=one) if isinstance(one, str) else one for one in several)


def open_sources(value: object, settings: Settings) -> DataFiles:
    """Return the files of the sources that a key of the config holds.

    Raises:
        VlmtuneError: a source is not there, holds no file of rows, files of several kinds or with other columns; or it
            needs `datasets`, which is not installed or refuses it.
    """
    sections = sections_of(value)
    found = [_found(section, settings) for section in sections]
    files = _data_files(sections, found, settings)
    sources = [
        Source(section.path or section.name, section.weight, _digest(some))
        for section, some in zip(sections, found, strict=True)
    ]
    return DataFiles(tuple(files), tuple(sources))


def files_at_path(path: str, settings: Settings) -> list[DataFile]:
    """Return the files of one source, a file, pattern or folder, of which no digest is needed.

    Raises:
        VlmtuneError: as for `open_sources`.
    """
    section = SourceSection(path=path)
    return _data_files((section,), [_found(section, settings)], settings)


def _data_files(
    sections: Sequence[SourceSection], found: Sequence[list[FoundFile]], settings: Settings
) -> list[DataFile]:
    """Return the files of each source with how they are read."""
    names = dict(zip(*_named([file for files in found for file in files if not file.called]), strict=True))
    files = []
    for index, (section, some) in enumerate(zip(sections, found, strict=True)):
        columns = section.columns or settings.columns or {}
        refuse_unknown_columns(columns)
        prompt = section.prompt or settings.prompt
        files += [
            DataFile(
                file.path, _rules(file, section, settings), file.called or names[file.named_after], columns, prompt,
                index, file.first_number,
            )
            for file in some
        ]  # fmt: skip
    refuse_mixed(files, [section.path or section.name for section in sections])
    return files


def _found(section: SourceSection, settings: Settings) -> list[FoundFile]:
    if section.name:
        from vlmtune.data.sources.library import hub_files

        return hub_files(section.name, section.subset, section.split or "train", section.revision)
    return files_at(settings.resolve(section.path), section.split)


def _named(files: list[FoundFile]) -> tuple[list[Path], list[str]]:
    paths = [file.named_after for file in files]
    return paths, names_of(paths)


def _rules(file: FoundFile, section: SourceSection, settings: Settings) -> ImageRules:
    """Return where a file's images are: where the source or the config says, or beside it."""
    told = section.image_dir or settings.image_dir
    folder = settings.resolve(told) if told else None
    check_image_dir(folder)
    return ImageRules(os.path.abspath(folder or file.named_after.parent), settings.allow_urls)


def _digest(files: list[FoundFile]) -> str:
    """Return the digest of what rows are read from: of files their content, of a hub data set its commit."""
    digests = [file.origin or file_sha256(file.named_after) for file in files]
    return digests[0] if len(digests) == 1 else text_sha256("\n".join(digests))
