"""A folder that holds an adapter alone: which base it needs, and what can be done with it."""

from pathlib import Path

from vlmtune.errors import VlmtuneError
from vlmtune.files import json_value
from vlmtune.reading import JSON_BYTES, read_regular

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_adapter(folder: Path) -> bool:
    """Return whether PEFT would load a folder."""
    return (folder / CONFIG).is_file()


def missing_file(folder: Path) -> str | None:
    """Return the file that an adapter lacks: PEFT would look for it on the hub, or take a pickle beside it."""
    return next((name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()), None)


def run_of(folder: Path) -> Path | None:
    """Return the run folder that an adapter or a checkpoint lies in; None where it was taken out of it."""
    return next((parent for parent in folder.absolute().parents[:2] if (parent / "plan.json").is_file()), None)


def base_in_words(folder: Path) -> str:
    """Return how the base of an adapter is called, and what that name is where no hub knows it."""
    try:
        base = json_value(read_regular(folder / CONFIG, JSON_BYTES)).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        base = None
    if not isinstance(base, str) or not base:
        return "an unknown model"
    is_hub_id = base.count("/") == 1 and not base.startswith((".", "/", "~"))
    return base if is_hub_id or Path(base).is_dir() else f"{base}, a folder where it was trained"


def no_run(folder: Path) -> VlmtuneError:
    """Return what people are told who give another folder, or an adapter, in place of a run's."""
    if is_adapter(folder):
        return _adapter_alone(folder)
    way_out = "give the folder that `vlmtune train` wrote, not one inside or above it"
    if (folder / "config.json").is_file():
        way_out = "generate and chat ask a whole model; this is for the folder that `vlmtune train` wrote"
    return VlmtuneError(f"{folder} is not a run folder: it has no plan.json", way_out)


def _adapter_alone(adapter: Path) -> VlmtuneError:
    if run := run_of(adapter):
        return VlmtuneError(f"{adapter} is inside of a run folder", f"give that: {run}")
    return VlmtuneError(
        f"{adapter} is an adapter without its run folder, trained on {base_in_words(adapter)}",
        "give the whole run folder; PEFT loads an adapter alone where base_model_name_or_path in its "
        "adapter_config.json is a hub id or the path of a folder with that model",
    )
