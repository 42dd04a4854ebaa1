"""The families vlmtune knows. Adding one = one file here, one entry in FAMILIES, one tiny model in tests/tiny."""

from difflib import get_close_matches

from vlmtune.errors import VlmtuneError
from vlmtune.models.families import gemma3, llava, paligemma, qwen2_vl, qwen3_vl, smolvlm
from vlmtune.models.families.base import Family

FAMILIES: tuple[Family, ...] = (
    gemma3.FAMILY,
    llava.FAMILY,
    paligemma.FAMILY,
    qwen2_vl.FAMILY,
    qwen3_vl.FAMILY,
    smolvlm.FAMILY,
)


def find_family(model_type: str, model_name: str) -> Family:
    """The family of a config.json's `model_type`.

    Raises:
        VlmtuneError: no family knows this type.
    """
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = sorted(kind for family in FAMILIES for kind in family.model_types)
    near = get_close_matches(str(model_type), known, n=1)
    raise VlmtuneError(
        f"{model_name}: model_type {model_type!r} belongs to no known family",
        f"known types: {', '.join(known)}{f'; nearest: {near[0]}' if near else ''}. "
        "To add a family, write one file in vlmtune/models/families and list it in its __init__.py",
    )
