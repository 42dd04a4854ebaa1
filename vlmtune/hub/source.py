"""Where a model is and what its small JSON files say, read before anything large. No torch here."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmtune.catalog import find_entry
from vlmtune.errors import VlmtuneError
from vlmtune.families.facts import Adapter, ModelFacts, Prequantised
from vlmtune.files import json_value
from vlmtune.hub.commits import pinned_commit
from vlmtune.hub.config_checks import refuse_absurd
from vlmtune.hub.download import checkpoint_folder, tensor_names
from vlmtune.hub.prequantised import prequantised_of
from vlmtune.reading import JSON_BYTES, read_regular
from vlmtune.runs.adapter import base_in_words, is_adapter, run_of

HEAD = "lm_head"
"""What files call the output layer, whatever lies around it."""


@dataclass(frozen=True)
class ModelSource:
    """A model's location and its JSON configs."""

    location: str
    """Absolute folder, or hub id."""
    config: dict[str, Any]
    """config.json; its sizes are whole numbers within reason."""
    preprocessor: dict[str, Any]
    """preprocessor_config.json, or class and image part of processor_config.json; empty when there is neither."""
    revision: str | None = None
    """The commit of a hub model: its files are the same ever after."""
    catalogued: Path | None = None
    """The catalogue's folder, where the configs come from there and no other file is at hand."""
    prequantised: Prequantised | None = None
    """What its files have in 4 bits already; None for a model in 16 bits."""
    has_own_head: bool = False
    """Its files hold a head besides the embedding; looked up where config.json does not say."""
    adapter: Adapter | None = None
    """What the run starts from."""

    def facts(self, name: str) -> ModelFacts:
        """Return what is known of the model; errors call it `name`."""
        return ModelFacts(self.config, self.preprocessor, name, self.prequantised, self.has_own_head, self.adapter)


def open_model(name: str, revision: str | None, base_dir: Path, *, offline_catalog: bool = False) -> ModelSource:
    """Read the JSON configs of the model folder `name` (relative to `base_dir`) or of the hub model `name`.

    With `offline_catalog` the configs of a model in the catalogue come from there, whatever the revision: enough to
    plan and to estimate. Training reads those of the checkpoint itself.

    Raises:
        VlmtuneError: no such folder, a revision of one, hub out of reach, a config that cannot be read, or a model
            whose files are quantised in a way that cannot be tuned.
    """
    folder = (base_dir / Path(name).expanduser()).resolve()
    if folder.is_dir():
        if revision:
            raise VlmtuneError(
                f"model.revision: {folder} is a folder, which has no revisions",
                "leave it out, or give a hub id as model.name",
            )
        return _of_files(_source(str(folder), folder, None))
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise VlmtuneError(
            f"model.name: there is no folder {folder}",
            "give a folder with a config.json, or a hub id such as org/model",
        )
    if offline_catalog and (entry := find_entry(name)):
        found = _source(entry.model_id, entry.folder, revision)
        return replace(found, catalogued=entry.folder, has_own_head=entry.parameters["head"] > 0)
    commit = pinned_commit(name, revision)
    return _of_files(_source(name, checkpoint_folder(name, commit, weights=False), commit))


def _source(location: str, folder: Path, revision: str | None) -> ModelSource:
    if not (folder / "config.json").exists():
        raise _no_model(folder)
    config = _read_json(folder / "config.json")
    refuse_absurd(config, folder / "config.json")
    prequantised = prequantised_of(config, location, revision)
    return ModelSource(location, config, _preprocessor(folder), revision, prequantised=prequantised)


def _of_files(source: ModelSource) -> ModelSource:
    """Return what the names of the tensors tell where config.json does not: the library shares the head by default."""
    sections = (source.config, source.config.get("text_config") or {})
    if any(section.get("tie_word_embeddings") is not None for section in sections):
        return source
    try:
        names = tensor_names(source.location, source.revision)
    except VlmtuneError:  # no weights are here yet, and none can be asked for: training says so, if it comes to that
        return source
    return replace(source, has_own_head=any(HEAD in name.split(".") for name in names))


def _preprocessor(folder: Path) -> dict[str, Any]:
    """The image processor's settings; transformers 5 writes them into processor_config.json."""
    if (folder / "preprocessor_config.json").is_file():
        return _read_json(folder / "preprocessor_config.json")
    if (folder / "processor_config.json").is_file():
        whole = _read_json(folder / "processor_config.json")
        settings = whole.get("image_processor")
        named = {key: whole[key] for key in ("processor_class",) if isinstance(whole.get(key), str)}
        return {**named, **settings} if isinstance(settings, dict) else named
    return {}


def _no_model(folder: Path) -> VlmtuneError:
    """Return what a folder without a config.json is, as far as that is known."""
    run = folder if (folder / "plan.json").is_file() else run_of(folder)
    if run:
        return VlmtuneError(
            f"model.name: {folder} is {'' if run == folder else 'in '}a run folder, not a model",
            f"to go on with that run: vlmtune train {run / 'config.yaml'} --resume; to train on what it learned, make "
            f"one model of it (vlmtune merge {run} -o MERGED) and name that: model.name: MERGED",
        )
    if is_adapter(folder):
        return VlmtuneError(
            f"model.name: {folder} is an adapter, not a model: it was trained on {base_in_words(folder)}",
            "give the hub id or the folder of that model; to train on what it learned, merge it into that first",
        )
    return VlmtuneError(f"model.name: {folder} has no config.json", "give the folder of a transformers model")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json_value(read_regular(path, JSON_BYTES))
    except ValueError as error:  # damaged bytes, JSON or numbers
        raise VlmtuneError(f"{path} is not JSON: {error}", "download the file again") from None
    if not isinstance(value, dict):
        raise VlmtuneError(f"{path} is not a JSON object", "download the file again")
    return value
