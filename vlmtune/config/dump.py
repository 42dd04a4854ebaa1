"""A checked config back to YAML, for the run folder."""

import os
from pathlib import Path

import yaml

from vlmtune.config.load import LoadedConfig


def write_config(loaded: LoadedConfig, path: Path) -> None:
    """Write every value, the preset dissolved; local paths become relative to `path`: the folder can be shared."""
    values = loaded.config.model_dump(mode="json")
    values["preset"] = None
    for key in ("train_path", "val_path", "image_dir"):
        if values["data"][key] is not None:
            target = loaded.resolve_path(values["data"][key]).resolve()
            values["data"][key] = Path(os.path.relpath(target, path.parent.resolve())).as_posix()
    folder = loaded.resolve_path(values["model"]["name"]).resolve()
    if folder.is_dir():
        values["model"]["name"] = Path(os.path.relpath(folder, path.parent.resolve())).as_posix()
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
