"""A checked config back to YAML, for the run folder."""

from pathlib import Path

from vlmtune.config.load import LoadedConfig
from vlmtune.config.reader import yaml_of
from vlmtune.files import relative_path, write_atomically


def write_config(loaded: LoadedConfig, path: Path) -> None:
    """Write every value, the preset dissolved; local paths become relative to `path`: the folder can be shared."""
    values = loaded.config.model_dump(mode="json")
    values["preset"] = None
    for key in ("train_path", "val_path", "image_dir"):
        if values["data"][key] is not None:
            values["data"][key] = relative_path(loaded.resolve_path(values["data"][key]), path.parent)
    for key in ("name", "adapter"):
        if (value := values["model"][key]) is not None and (folder := loaded.resolve_path(value)).is_dir():
            values["model"][key] = relative_path(folder, path.parent)
    write_atomically(path, yaml_of(values) + "\n")
