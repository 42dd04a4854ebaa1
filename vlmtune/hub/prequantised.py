"""Models whose files are quantised already: bitsandbytes' 4 bits are read, others are refused by name. No torch here.

config.json says how a model was quantised, and what it left in 16 bits in words that every version of transformers has
read in another way. So which layers are in 4 bits is read from the names of the tensors: a packed weight has others
beside it, such as `….weight.quant_state.bitsandbytes__nf4`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmtune.catalog import nearest_ids
from vlmtune.errors import VlmtuneError
from vlmtune.families.facts import Prequantised
from vlmtune.hub.download import tensor_names
from vlmtune.hub.shards import StoredTensor

STATE = re.compile(r"(?P<module>.+)\.weight\.quant_state\.bitsandbytes__(?P<type>\w+)$")
"""Of each packed weight, the tensor that holds its shape and format as JSON."""
NESTED = "weight.nested_absmax"
"""Beside a weight whose constants are quantised too."""
ENDINGS = {".qweight": "GPTQ or AWQ", ".weight_packed": "compressed-tensors", ".weight_scale_inv": "FP8"}
"""Tensors of weights in other formats."""
NAMED = {"awq": "AWQ", "gptq": "GPTQ", "fp8": "FP8", "fbgemm_fp8": "FP8", "mxfp4": "MXFP4", "hqq": "HQQ"}


def prequantised_of(config: dict[str, Any], location: str, revision: str | None) -> Prequantised | None:
    """Return what is in 4 bits already in the files of a model; None where its config.json tells of nothing.

    Raises:
        VlmtuneError: it is quantised in another way, which config.json alone tells; or the files cannot be reached.
    """
    said = _said(config)
    if said is None:
        return None
    if not said.get("load_in_4bit") or said.get("bnb_4bit_quant_storage", "uint8") != "uint8":
        raise _refused(location, _in_words(said))
    names = tensor_names(location, revision)
    states = [state for state in map(STATE.match, names) if state]
    types = {state["type"] for state in states}
    if len(types) != 1:
        found = f"weights of several formats, {' and '.join(sorted(types))}" if types else "no weight in 4 bits"
        raise VlmtuneError(
            f"model.name: the config.json of {location} tells of 4 bits, and its files have {found}",
            "download the model again, or name another one",
        )
    double_quant = any(name.endswith(NESTED) for name in names)
    return Prequantised(types.pop(), double_quant, tuple(sorted(state["module"] for state in states)))


def refuse_silent(stored: Mapping[str, StoredTensor], location: object) -> None:
    """Raise where the files of a model are quantised in another way, of which its config.json says nothing."""
    for name, tensor in stored.items():
        how = next((how for ending, how in ENDINGS.items() if name.endswith(ending)), None)
        if how or tensor.dtype.startswith("F8_"):
            raise _refused(str(location), f"{how or 'FP8'}, by the name or format of {name}")


def _said(config: dict[str, Any]) -> dict[str, Any] | None:
    """Return what config.json says of how the weights are quantised, the language model's own section included."""
    for section in (config, config.get("text_config") or {}):
        for key in ("quantization_config", "compression_config", "quantization"):
            if section.get(key) is not None:
                return section[key] if isinstance(section[key], dict) else {}
    return None


def _in_words(said: dict[str, Any]) -> str:
    method = said.get("quant_method")
    if said.get("load_in_8bit"):
        return "bitsandbytes, 8 bits"
    if said.get("load_in_4bit"):
        return f"bitsandbytes, 4 bits packed as {said['bnb_4bit_quant_storage']}"
    if method is None:
        return "MLX" if {"bits", "group_size"} <= said.keys() else "its config.json does not say how"
    return NAMED.get(method, str(method))


def _refused(location: str, how: str) -> VlmtuneError:
    name = Path(location).name if Path(location).is_absolute() else location
    known = f", such as {near[0]}" if (near := nearest_ids(name)) else ""
    return VlmtuneError(
        f"model.name: {location} is already quantised ({how}): adapters are trained on models in 16 bits, or in 4 bits "
        "of bitsandbytes",
        f"name the 16-bit model that it was made of{known}: vlmtune quantises it while loading",
    )
