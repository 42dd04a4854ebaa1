"""Where a model is and what its small JSON files say, read before anything large. No torch here."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmtune.errors import VlmtuneError
from vlmtune.models.catalog import find_entry, nearest_ids


@dataclass(frozen=True)
class ModelSource:
    """A model's location and its JSON configs."""

    location: str
    """Absolute folder, or hub id."""
    config: dict[str, Any]
    """config.json."""
    preprocessor: dict[str, Any]
    """preprocessor_config.json, or the image part of processor_config.json; empty when there is neither."""


def open_model(name: str, revision: str | None, base_dir: Path, *, offline_catalog: bool = False) -> ModelSource:
    """Read the JSON configs of the model folder `name` (relative to `base_dir`) or of the hub model `name`.

    With `offline_catalog` the configs of a model in the catalogue come from there, whatever the revision: enough to
    plan and to estimate. Training reads those of the checkpoint itself.

    Raises:
        VlmtuneError: no such folder, hub out of reach, or a config that cannot be read.
    """
    folder = (base_dir / Path(name).expanduser()).resolve()
    if folder.is_dir():
        return ModelSource(str(folder), _read_json(folder / "config.json"), _preprocessor(_in_folder(folder)))
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise VlmtuneError(
            f"model.name: there is no folder {folder}",
            "give a folder with a config.json, or a hub id such as org/model",
        )
    if offline_catalog and (entry := find_entry(name)):
        find = _in_folder(entry.folder)
        return ModelSource(entry.model_id, _read_json(entry.folder / "config.json"), _preprocessor(find))
    config = _read_json(_hub_file(name, revision, "config.json"))
    return ModelSource(name, config, _preprocessor(_on_hub(name, revision)))


Finder = Callable[[str], Path | None]


def _in_folder(folder: Path) -> Finder:
    def find(file_name: str) -> Path | None:
        path = folder / file_name
        return path if path.is_file() else None

    return find


def _on_hub(name: str, revision: str | None) -> Finder:
    def find(file_name: str) -> Path | None:
        return _hub_file(name, revision, file_name, required=False)

    return find


def _preprocessor(find: Finder) -> dict[str, Any]:
    """The image processor's settings; transformers 5 writes them into processor_config.json."""
    if path := find("preprocessor_config.json"):
        return _read_json(path)
    if path := find("processor_config.json"):
        return _read_json(path).get("image_processor", {})
    return {}


def _hub_file(name: str, revision: str | None, file_name: str, required: bool = True) -> Path | None:
    """The cached or downloaded file; None when the repository has no such file and it is not required."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(hf_hub_download(name, file_name, revision=revision))
    except GatedRepoError:
        raise VlmtuneError(
            f"model.name: {name} is gated", f"accept its licence on its hub page, then run `hf auth login` ({name})"
        ) from None
    except RepositoryNotFoundError:
        raise VlmtuneError(
            f"model.name: neither a folder nor a hub model is called {name}",
            f"check the spelling of the hub id{_nearest(name)}",
        ) from None
    except RevisionNotFoundError:
        raise VlmtuneError(f"model.revision: {name} has no revision {revision}", "see its branches and tags") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        if not required:
            return None
        raise VlmtuneError(
            f"model.name: {name} is not in the local cache and the hub cannot be reached",
            f"check the connection, or give the path of a folder with the model{_nearest(name)}",
        ) from None
    except EntryNotFoundError:
        if not required:
            return None
        raise VlmtuneError(f"model.name: {name} has no {file_name}", "only transformers models can be tuned") from None
    except HfHubHTTPError as error:
        raise VlmtuneError(f"model.name: the hub refused {name}: {error}", "try again later") from None


def _nearest(name: str) -> str:
    """Words for the end of a hint: ids of the catalogue that look like `name`."""
    ids = [near for near in nearest_ids(name) if near.lower() != name.lower()]
    return f"; known models with a similar name: {', '.join(ids)}" if ids else ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise VlmtuneError(
            f"model.name: {path.parent} has no {path.name}", "give the folder of a transformers model"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise VlmtuneError(f"{path} is not JSON: {error}", "download the file again") from None
    if not isinstance(value, dict):
        raise VlmtuneError(f"{path} is not a JSON object", "download the file again")
    return value
