"""The families vlmtune knows. Adding one = one file here, one entry in FAMILIES, one tiny model in tests/tiny."""

from vlmtune.families import gemma3, instructblip, llava, paligemma, qwen2_vl, qwen3_vl, qwen_vl, smolvlm
from vlmtune.families.base import Family, Json
from vlmtune.families.generic import generic_family

FAMILIES: tuple[Family, ...] = (
    gemma3.FAMILY,
    instructblip.FAMILY,
    llava.FAMILY,
    paligemma.FAMILY,
    qwen2_vl.FAMILY,
    qwen3_vl.FAMILY,
    qwen_vl.FAMILY,
    smolvlm.FAMILY,
)


def find_family(config: Json, model_name: str) -> Family:
    """The family of a config.json; the generic one, which imports torch, when none here takes it.

    Raises:
        VlmtuneError: transformers does not know the type either, or the model keeps other conventions.
    """
    for family in FAMILIES:
        if family.takes(config):
            return family
    return generic_family(config, model_name)
