"""A checked config back to YAML, for the run folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmtune.config.load import LoadedConfig
from vlmtune.config.reader import yaml_of
from vlmtune.config.sections import SourceSection
from vlmtune.files import relative_path, write_atomically


def write_config(loaded: LoadedConfig, path: Path) -> None:
    """Write every value, the preset dissolved; local paths become relative to `path`: the folder can be shared."""
    values = loaded.config.model_dump(mode="json")
    values["preset"] = None
    data = values["data"]
    for key in ("train_path", "val_path"):
        data[key] = _sources(data[key], lambda local: relative_path(loaded.resolve_path(local), path.parent))
    if data["image_dir"] is not None:
        data["image_dir"] = relative_path(loaded.resolve_path(data["image_dir"]), path.parent)
    for key in ("name", "adapter"):
        if (value := values["model"][key]) is not None and (folder := loaded.resolve_path(value)).is_dir():
            values["model"][key] = relative_path(folder, path.parent)
    write_atomically(path, yaml_of(values) + "\n")


def _sources(value: Any, moved: Callable[[str], str]) -> Any:
    """Return sources as they are written, each path as `moved` gives it, without keys that say nothing."""
    if isinstance(value, list):
        return [_sources(one, moved) for one in value]
    if isinstance(value, dict):
        told = {key: one for key, one in value.items() if one != SourceSection.model_fields[key].default}
        return {key: moved(one) if key in ("path", "image_dir") else one for key, one in told.items()}
    return value and moved(value)
