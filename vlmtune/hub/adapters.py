"""An adapter that a run starts from: what its files say of it, read before anything large. No torch here.

Its config decides rank and scale and nothing else: which layers it is on is read from the names of its tensors.
"""

import re
from pathlib import Path
from typing import Any

from vlmtune.config.schema import MAX_ALPHA, MAX_RANK
from vlmtune.errors import VlmtuneError
from vlmtune.families.facts import Adapter
from vlmtune.files import file_sha256, json_value
from vlmtune.hub.shards import stored_in
from vlmtune.reading import JSON_BYTES, read_regular
from vlmtune.runs.adapter import CONFIG, WEIGHTS, base_in_words, is_adapter
from vlmtune.runs.manifest import damage, refuse_damaged

KEY = "model.adapter"
TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight")
HINT = "give the folder of a finished run, one of its checkpoints, or an adapter of PEFT"
OTHERWISE = (
    "use_dora",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "lora_bias",
    "modules_to_save",
    "megatron_config",
)
"""Keys of PEFT that make an adapter another one than rank and alpha say."""


def open_adapter(path: Path) -> Adapter:
    """Return what is known of the adapter in a folder, or of that of a finished run.

    Raises:
        VlmtuneError: there is none, it is damaged, or it is no plain LoRA in safetensors.
    """
    folder = _folder(path)
    refuse_damaged(folder, damage(folder), "take another one, or train it again")
    rank, alpha = _numbers(folder)
    names = [(name, TENSOR.fullmatch(name)) for name in stored_in(folder / WEIGHTS)]
    if others := [name for name, found in names if not found]:
        raise _refused(folder, f"it holds {others[0]}")
    halves = {half: {found["module"] for _, found in names if found["half"] == half} for half in "AB"}
    if not names or halves["A"] != halves["B"]:
        raise VlmtuneError(f"{KEY}: {folder / WEIGHTS} lacks tensors of adapters", "train or download it again")
    base, digest = base_in_words(folder), file_sha256(folder / WEIGHTS)
    return Adapter(folder, digest, rank, alpha, tuple(sorted(halves["A"])), base)


def _folder(path: Path) -> Path:
    """Return the folder with the files: of a run folder the one inside it."""
    folder = path / "adapter" if (path / "plan.json").is_file() else path
    if folder != path and not is_adapter(folder):
        raise VlmtuneError(
            f"{KEY}: the run {path} has no adapter yet", "name one of its checkpoints: RUN/checkpoints/checkpoint-STEP"
        )
    if not is_adapter(folder):
        what = f"{folder} is no adapter in PEFT's format: it has no {CONFIG}"
        raise VlmtuneError(f"{KEY}: {what if folder.is_dir() else f'there is no folder {folder}'}", HINT)
    if not (folder / WEIGHTS).is_file():
        pickle = next(folder.glob("adapter_model.bin"), None)
        why = f"it has {pickle.name}, a pickle: opening one can run any program" if pickle else "it is not all there"
        raise VlmtuneError(f"{KEY}: {folder} has no {WEIGHTS}; {why}", "save it with safe_serialization in PEFT")
    return folder


def _numbers(folder: Path) -> tuple[int, int]:
    """Return rank and alpha of a plain LoRA."""
    try:
        config: dict[str, Any] = dict(json_value(read_regular(folder / CONFIG, JSON_BYTES)))
    except (ValueError, TypeError):
        raise VlmtuneError(f"{KEY}: {folder / CONFIG} is damaged", "train or download it again") from None
    if config.get("peft_type") != "LORA":
        raise _refused(folder, f"its peft_type is {config.get('peft_type')}")
    if asked := next((key for key in OTHERWISE if config.get(key)), None):
        raise _refused(folder, f"its {CONFIG} has {asked}")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not _is_whole(rank, MAX_RANK) or not _is_whole(alpha, MAX_ALPHA):
        raise _refused(folder, f"r is {rank!r} and lora_alpha {alpha!r}, not whole numbers that a run can have")
    return int(rank), int(alpha)


def _is_whole(number: Any, most: int) -> bool:
    return type(number) in (int, float) and 1 <= number <= most and number == int(number)


def _refused(folder: Path, why: str) -> VlmtuneError:
    return VlmtuneError(
        f"{KEY}: {folder} is no plain LoRA, which alone can be trained on: {why}",
        "merge it into its base with the tool that made it, and give the result as model.name",
    )
