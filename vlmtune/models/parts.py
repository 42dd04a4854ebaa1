"""Models that are made without some of their parts: these weights are neither read from the files nor held anywhere."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import nn
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, PretrainedConfig

from vlmtune.families.base import Family

SEES = ("vision", "projector")
"""The parts that make of an image what the language model reads."""
READS = ("text", "head", "other")
"""All others."""


def parts_in_training(family: Family, *, cache_features: bool) -> tuple[str, ...] | None:
    """Return the parts that training needs; None: all."""
    if not cache_features:
        return None
    return (*READS, "projector") if family.projector_embeds else READS


@contextmanager
def only(parts: Collection[str] | None, config: PretrainedConfig, family: Family) -> Iterator[None]:
    """Let models of this config be made with these parts only, wherever the library makes one; None: with all."""
    if parts is None:
        yield
        return
    model_class = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    make_whole = model_class.__init__

    def make(model: nn.Module, *args, **kwargs) -> None:
        make_whole(model, *args, **kwargs)
        _leave_out(model, "", parts, family)
        if "text" not in parts:
            # Head and embedding, which would be made one, are not there.
            model.config.tie_word_embeddings = False
            model.all_tied_weights_keys = {}

    with patch.object(model_class, "__init__", make):
        yield


def _leave_out(module: nn.Module, path: str, parts: Collection[str], family: Family) -> None:
    """Put an empty module or tensor, which is no parameter, in place of whatever lies in no part that stays."""
    for name, child in list(module.named_children()):
        child_path = f"{path}.{name}".lstrip(".")
        if _stays(child_path, parts, family):
            _leave_out(child, child_path, parts, family)
        else:
            setattr(module, name, nn.Module())
    for name in list(dict(module.named_parameters(recurse=False))):
        if not _stays(f"{path}.{name}".lstrip("."), parts, family):
            delattr(module, name)
            setattr(module, name, torch.empty(0))  # the library fills it while it loads


def _stays(path: str, parts: Collection[str], family: Family) -> bool:
    """Return whether a module or parameter belongs to one of the parts, or holds something that does."""
    places = {
        "vision": (family.vision,),
        "projector": family.projector,
        "head": (family.head,),
        "other": family.other,
        "text": (family.text,),
    }
    if any(place.startswith(f"{path}.") for part in parts for place in places[part]):
        return True
    try:
        return family.part_of(path) in parts
    except ValueError:
        return True  # outside of all parts: it holds no weight


def rest_frozen_parts(model: nn.Module, family: Family) -> None:
    """Keep towers and projectors in which nothing learns in eval mode, whatever mode the model is set to.

    Their dropout (InstructBLIP's Q-Former has it) would only make other features of the same image each time.
    """
    parts = (family.vision, *family.projector, *family.other)
    for name, module in model.named_modules():
        if name in parts and not any(parameter.requires_grad for parameter in module.parameters()):
            module.eval()
            module.train = lambda mode=True, module=module: module


def cast_features(model: nn.Module, family: Family) -> None:
    """Let the projector return fp32, whatever autocast computes in, where the library does not see to it."""
    for name in () if family.casts_features else family.projector:
        model.get_submodule(name).register_forward_hook(lambda module, args, features: features.float())
