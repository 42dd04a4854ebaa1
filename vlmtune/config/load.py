"""A config file, its preset and `--set` → a checked TrainingConfig that knows where each value came from."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from vlmtune.config import explain, presets
from vlmtune.config.keys import Key, all_keys, key_at, section_at
from vlmtune.config.reader import Document, KeyPath, Refused, read_file, read_scalar
from vlmtune.config.schema import TrainingConfig
from vlmtune.config.text import shown
from vlmtune.config.values import Values, changed, words_of
from vlmtune.errors import ExitCode, VlmtuneError

MAX_PROBLEMS = 100


def resolved(base_dir: Path, value: str) -> Path:
    """Return a path as the file system sees it: relative ones start at a folder."""
    return Path(os.path.normpath(base_dir / os.path.expanduser(value)))


@dataclass(frozen=True)
class LoadedConfig:
    """A checked config, the source of each of its values and the folder its data paths start from."""

    config: TrainingConfig
    sources: dict[str, str]
    """Dotted key → `default`, `preset 8gb`, `configs/8gb.yaml:7` or `--set`."""
    base_dir: Path

    def is_general(self, key: str) -> bool:
        """Whether nobody wrote the value of a key for this run: it is a default, or a preset's."""
        return self.sources[key] == "default" or self.sources[key].startswith("preset ")

    def resolve_path(self, value: str) -> Path:
        """A path of the `data` section as the file system sees it: relative ones start at the config file."""
        return resolved(self.base_dir, value)

    def with_values(self, values: Values, source: str = "--set") -> "LoadedConfig":
        """The same config with other values, as `--set` would change it; `source` says where they come from.

        Raises:
            VlmtuneError: they cannot hold beside the others.
        """
        try:
            config = changed(self.config, values)
        except ValidationError as error:
            said = "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors())
            raise VlmtuneError(f"{' '.join(words_of(values))}: {said}") from None
        return LoadedConfig(config, self.sources | dict.fromkeys(values, source), self.base_dir)

    def values(self) -> dict[str, object]:
        """Every key with its value, dotted, in the order of the schema."""
        tree = self.config.model_dump(mode="json")
        return {key.name: _at(tree, key.path) for key in all_keys()}


def load_config(path: Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """The checked config of a YAML file: defaults < its preset < the file < `overrides` (`a.b=value`).

    Raises one VlmtuneError that holds every mistake of the file and the overrides in its `problems`.
    """
    return _merged(_read(path), overrides, path.parent)


COMMAND_LINE = "command line"
"""Where the values of a config without a file come from."""
NO_DATA = "-"
"""The `data.train_path` of a config without data."""


def preset_config(model: str, preset: str, overrides: Sequence[str] = (), *, train_path: str = NO_DATA) -> LoadedConfig:
    """The config of a preset and a model without a file, for estimates; paths start from the current folder."""
    values = {"preset": preset, "model": {"name": model}, "data": {"train_path": train_path}}
    return _merged(Document(COMMAND_LINE, values), overrides, Path())


def _merged(file: Document, overrides: Sequence[str], base_dir: Path) -> LoadedConfig:
    settings = [_override(text) for text in overrides]
    merge = _Merge()
    asked_in = [document for document in (file, *settings) if "preset" in document.values]
    if asked_in and isinstance(asked_in[-1].values["preset"], str):
        merge.add_preset(asked_in[-1])
    for document in (file, *settings):
        merge.add(document)
    config = merge.check(file)
    if merge.problems:
        raise _as_one_error(merge.problems, file.name)
    return LoadedConfig(config, {key.name: merge.source(key.path) for key in all_keys()}, base_dir)


class _Merge:
    """The values of several documents, later ones over earlier ones, and every mistake found on the way."""

    def __init__(self) -> None:
        self.values: dict[KeyPath, object] = {}
        self.documents: dict[KeyPath, Document] = {}
        self.refused: set[KeyPath] = set()
        self.problems: list[tuple[int, VlmtuneError]] = []

    def source(self, path: KeyPath) -> str:
        """Where the value of a key came from."""
        return self.documents[path].where(path) if path in self.documents else "default"

    def add_preset(self, asked_in: Document) -> None:
        """Add the values of the preset that a document asks for, or the mistake in its name."""
        try:
            self.add(presets.document(asked_in.values["preset"]))
        except VlmtuneError as error:
            message = f"{error.message}  ({asked_in.where(('preset',))})"
            self._note(asked_in, ("preset",), VlmtuneError(message, error.hint))

    def add(self, document: Document) -> None:
        """Put a document's values over those that are there."""
        self.problems += document.problems
        if document.problems and not document.values:
            self.refused.add(())
        self._add_group(document, document.values, ())

    def _add_group(self, document: Document, group: dict[str, object], path: KeyPath) -> None:
        fields = section_at(path).model_fields
        for name, value in group.items():
            inner = (*path, name)
            if value is Refused:
                self.refused.add(inner)
            elif len(self.problems) > MAX_PROBLEMS:
                return
            elif name not in fields:
                self._note(document, inner, explain.unknown_key(inner, document.where(inner)))
            elif not section_at(inner):
                self.values[inner], self.documents[inner] = value, document
            elif isinstance(value, dict):
                self._add_group(document, value, inner)
            elif value is not None:
                self.refused.add(inner)
                self._note(document, inner, explain.not_a_group(inner, value, document.where(inner)))

    def _note(self, document: Document, path: KeyPath, error: VlmtuneError) -> None:
        self.problems.append((document.line(path), error))

    def check(self, file: Document) -> TrainingConfig | None:
        """The config, or None after noting what the schema refuses."""
        tree: dict = {"model": {}, "data": {}}
        for path, value in self.values.items():
            group = tree
            for part in path[:-1]:
                group = group.setdefault(part, {})
            # A YAML list stands for a tuple, which a strict schema tells apart.
            group[path[-1]] = tuple(value) if isinstance(value, list) else value
        try:
            return TrainingConfig.model_validate(tree)
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False)
        for key in dict.fromkeys(key_at(problem["loc"]) for problem in found if problem["loc"]):
            self._note_wrong_value(key, file)
        for problem in found:
            if not problem["loc"]:
                self._note_contradictions(problem["msg"], file)
        return None

    def _note_wrong_value(self, key: Key, file: Document) -> None:
        document = self.documents.get(key.path, file)
        if key.path in self.values:
            error = explain.wrong_value(key, self.values[key.path], document.where(key.path))
        elif any(key.path[: len(path)] == path for path in self.refused):
            return
        else:
            error = explain.missing_key(key.path, document.name)
        self._note(document, key.path, error)

    def _note_contradictions(self, message: str, file: Document) -> None:
        for row in message.removeprefix("Value error, ").split("\n"):
            path = tuple(row.split(":", 1)[0].split("."))
            document = self.documents.get(path, file)
            self._note(document, path, VlmtuneError(f"{row}  ({document.where(path)})"))


def _read(path: Path) -> Document:
    try:
        return read_file(path)
    except VlmtuneError as error:
        if str(path) in presets.names() and not path.exists():
            hint = f"{path} is a preset: `vlmtune presets copy {path} my-run.yaml` makes a config of it"
            raise VlmtuneError(error.message, hint) from None
        raise


def _override(text: str) -> Document:
    """The document that a `--set a.b=value` stands for."""
    name, equals, raw = text.partition("=")
    path = tuple(name.strip().split("."))
    if not equals or not all(path):
        raise VlmtuneError(
            f"--set {shown(text, bare=True)} is not KEY=VALUE",
            "write it as --set training.lora.rank=16",
            code=ExitCode.USAGE,
        )
    value = _override_value(text, raw)
    key = next((key for key in all_keys() if key.path == path), None)
    if key and key.json_type == "string" and isinstance(value, bool | int | float):
        value = raw.strip()
    for part in reversed(path):
        value = {part: value}
    return Document("--set", value)


def _override_value(text: str, raw: str) -> object:
    try:
        return read_scalar(raw)
    except VlmtuneError:
        raise VlmtuneError(
            f"--set {shown(text, bare=True)} has a value that is not plain YAML",
            "put quotes around text that holds special characters: --set 'model.revision=\"[old]\"'",
            code=ExitCode.USAGE,
        ) from None


def _as_one_error(problems: list[tuple[int, VlmtuneError]], name: str) -> VlmtuneError:
    ordered = [error for _, error in sorted(problems, key=lambda problem: problem[0])]
    if len(ordered) == 1:
        return VlmtuneError(ordered[0].message, ordered[0].hint, problems=tuple(ordered))
    count = str(len(ordered))
    if len(ordered) > MAX_PROBLEMS:
        ordered, count = ordered[:MAX_PROBLEMS], f"more than {MAX_PROBLEMS}"
    return VlmtuneError(f"{count} problems in {name}", problems=tuple(ordered))


def _at(tree: dict, path: KeyPath) -> object:
    for part in path:
        tree = tree[part]
    return tree
