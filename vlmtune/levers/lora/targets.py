"""Which linear layers get adapters: the language model's, the tower's where asked, or those of an adapter there is."""

import re
from collections.abc import Iterable
from dataclasses import replace

from vlmtune.errors import VlmtuneError
from vlmtune.families.base import Family
from vlmtune.families.facts import Adapter

VISION = "training.lora.vision_tower"


def lora_targets(family: Family, with_vision: bool) -> str:
    """Return the regular expression of the modules that get an adapter, anchored at full paths."""
    nested = [
        path.removeprefix(family.text + ".")
        for path in (family.vision, *family.projector, *family.other)
        if path.startswith(family.text + ".")
    ]
    not_nested = f"(?!({'|'.join(nested)})\\.)" if nested else ""
    text = rf"{family.text}\.{not_nested}.*\.({'|'.join(family.text_linears)})"
    if not with_vision:
        return text
    inside = [path.removeprefix(family.vision + ".") for path in family.projector if path.startswith(family.vision)]
    not_projector = f"(?!({'|'.join(inside)})\\.)" if inside else ""
    return rf"{text}|{family.vision}\.{not_projector}.*\.({'|'.join(family.vision_linears)})"


def targets_of(adapter: Adapter, family: Family, with_vision: bool) -> str:
    """Return the same of the layers, by their names, that the adapter to start from is on.

    Raises:
        VlmtuneError: it is on others than adapters of this model can be on.
    """
    of_text = {module for module in adapter.modules if re.fullmatch(lora_targets(family, False), module)}
    of_vision = {module for module in adapter.modules if re.fullmatch(lora_targets(family, True), module)} - of_text
    others = sorted(set(adapter.modules) - of_text - of_vision)
    if not of_text:
        others = [*others, *sorted(of_vision)]
    if others:
        raise VlmtuneError(
            f"model.adapter: {adapter.folder} is on {others[0]}, which adapters of this model are not: it was trained "
            f"on {adapter.base}",
            "name the model that it was trained on, as model.name",
        )
    if with_vision != bool(of_vision):
        on = "is on the vision tower too" if of_vision else "is not on the vision tower"
        raise VlmtuneError(
            f"{VISION}: {str(with_vision).lower()}, and {adapter.folder} {on} (model.adapter)",
            f"set {VISION}: {str(not with_vision).lower()}",
        )
    text, vision = _named(family.text_linears, of_text), _named(family.vision_linears, of_vision)
    return lora_targets(replace(family, text_linears=text, vision_linears=vision), with_vision)


def _named(names: Iterable[str], modules: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if any(module.endswith(f".{name}") for module in modules))
