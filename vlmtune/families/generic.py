"""Architectures without a file of their own: what a family must say, read from a weightless model of the config.

Works for what `AutoModelForImageTextToText` knows and what keeps the library's conventions. torch and transformers are
imported when such a model is asked for.
"""

import json
import re
from difflib import get_close_matches
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from vlmtune.compat.modeling import ATTN_IMPLEMENTATION
from vlmtune.compat.transformers import MODEL_NAMES
from vlmtune.errors import VlmtuneError
from vlmtune.families.base import Family, Json, RefusedImage
from vlmtune.families.boxes import OF_MODEL_TYPES
from vlmtune.families.knobs import image_settings

if TYPE_CHECKING:
    from torch import nn
    from transformers import ProcessorMixin

NAME = "generic"
OTHER = re.compile(r"audio|video|speech|sound|vq|codec|talker|mtp|nextn|generation|action|motion|protein")
"""Words in the names of parts that neither see images nor write text."""
PROJECTOR = re.compile(r"merger|projector|connector|aligner|adapter|resampler|abstractor")
ENCODER_DECODERS = ("florence2", "pix2struct", "pp_formulanet", "t5gemma2", "udop", "vision-encoder-decoder")
UNPACKED = {"gemma3n": ("prediction_coefs", "correction_coefs")}
"""By model type: the model's own code changes these weights in place, which would destroy packed ones."""
PROJECTOR_EMBEDS = ("gemma3n",)
"""Model types whose projector embeds tokens too."""
DAMAGED = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What building a model from a damaged config.json raises: anything, wherever a number is used first."""
ROUTERS = ("gate", "router")
REFUSALS = (ArithmeticError, RuntimeError, ValueError)
"""What image processors raise on sizes that they cannot take: some check them, others divide by a side of 0 px."""
NOT_CACHEABLE = "the library has no get_image_features for them"

PACKABLE = (
    *("aya_vision", "cohere2_vision", "deepseek_vl", "exaone4_5", "gemma4", "got_ocr2"),
    *("idefics2", "internvl", "janus", "lighton_ocr", "llava_next", "llava_next_video", "llava_onevision", "mistral3"),
    *("video_llama_3", "video_llava", "vipllava"),
)
"""Model types whose packed rows learn what they learn one by one: a test holds it (5.17 to 5.23)."""
ANSWERED_ALONE = ("minicpmv4_6", "minicpmv4_7", "mllama")
"""Model types that answer otherwise, or not at all, where several rows are asked at once (5.23)."""
ALONE = "several at once, they answer otherwise than alone"
NOT_PACKABLE = "nobody has shown that their rows do not see each other"


def generic_family(config: Json, model_name: str) -> Family:
    """Return the family of a config.json that no file here declares.

    Raises:
        VlmtuneError: transformers does not know the type, or the model keeps other conventions.
    """
    return _derived(json.dumps(dict(config), sort_keys=True), model_name)


@cache
def _derived(config_json: str, model_name: str) -> Family:
    config = json.loads(config_json)
    model = _weightless(config, model_name)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    paths = {id(module): name for name, module in model.named_modules()}
    if head is None or embedding is None or id(head) not in paths or id(embedding) not in paths:
        raise VlmtuneError(f"{model_name}: the model has no output head of its own", "it cannot be tuned on text")
    text, head_path = paths[id(embedding)].rpartition(".")[0], paths[id(head)]
    outside = _outside(model, text, head_path)
    other = tuple(path for path in outside if OTHER.search(path))
    seeing = {path: size for path, size in outside.items() if path not in other}
    if not text or not seeing:
        raise VlmtuneError(f"{model_name}: no vision tower beside the language model was found in it", "write a family")
    vision = max(seeing, key=seeing.get)
    inside = [f"{vision}.{name}" for name, _ in model.get_submodule(vision).named_children() if PROJECTOR.search(name)]
    unpacked = UNPACKED.get(config["model_type"], ())
    projector = (*(path for path in seeing if path != vision), *inside)
    linears = _linears(model.get_submodule(text), (vision, *projector, *other), text)
    return Family(
        name=NAME,
        model_types=(config["model_type"],),
        text=text,
        vision=vision,
        projector=projector,
        text_linears=tuple(name for name in linears if name not in unpacked),
        vision_linears=_linears(model.get_submodule(vision), inside, vision),
        image_tokens=image_tokens,
        image_settings=image_settings,
        head=head_path,
        eager=_eager(model, text),
        unpacked=unpacked,
        other=other,
        not_cacheable="" if hasattr(model.base_model, "get_image_features") else NOT_CACHEABLE,
        answers_alone=ALONE if config["model_type"] in ANSWERED_ALONE else "",
        not_packable="" if config["model_type"] in PACKABLE else NOT_PACKABLE,
        projector_embeds=config["model_type"] in PROJECTOR_EMBEDS,
        boxes={kind: one for kind, one in OF_MODEL_TYPES.items() if kind == config["model_type"]},
    )


def image_tokens(config: Json, preprocessor: Json, width_px: int, height_px: int) -> int:
    """Count what the model's own processor makes of a blank image of this size, its markers included."""
    return _count_image_tokens(json.dumps([config, preprocessor], sort_keys=True), width_px, height_px)


@lru_cache(maxsize=100_000)
def _count_image_tokens(configs_json: str, width_px: int, height_px: int) -> int:
    """Return the tokens of one image of this size; `configs_json` is [config, preprocessor config].

    Raises:
        RefusedImage: the processor takes no image of this size.
    """
    from PIL import Image

    from vlmtune.families.standin import placeholder

    processor = _cached_processor(configs_json)
    start = processor.tokenizer.bos_token
    empty = len(processor.tokenizer(f"{start}q", add_special_tokens=False)["input_ids"])
    image = Image.new("RGB", (width_px, height_px))
    try:
        output = processor(text=[f"{start}{placeholder(processor)}q"], images=[image], add_special_tokens=False)
    except REFUSALS as error:
        raise RefusedImage(
            f"this model's processor refuses an image: {' '.join(str(error).split())}", "replace it, or remove the row"
        ) from None
    return len(output["input_ids"][0]) - empty


@cache
def _cached_processor(configs_json: str) -> "ProcessorMixin":
    from vlmtune.families.standin import standin_processor

    config, preprocessor = json.loads(configs_json)
    return standin_processor(config, preprocessor)


def _weightless(config: Json, model_name: str) -> "nn.Module":
    """Return the model without storage."""
    from huggingface_hub.errors import StrictDataclassError

    kind = config.get("model_type")
    if config.get("is_encoder_decoder") or kind in ENCODER_DECODERS:
        raise VlmtuneError(f"{model_name}: {kind} is an encoder-decoder", "give a model with a decoder alone")
    known = MODEL_NAMES.get()
    if kind not in known:
        near = get_close_matches(str(kind), known, n=1)
        raise VlmtuneError(
            f"{model_name}: model_type {kind!r} belongs to no known family",
            "the installed transformers knows no vision-language model of this type"
            f"{f'; nearest: {near[0]}' if near else ''}",
        )
    try:
        return _on_meta(config)
    except ImportError as error:
        raise VlmtuneError(f"{model_name}: a library is missing: {_line(error)}", "install it, such as timm") from None
    except (*DAMAGED, StrictDataclassError) as error:
        said = f"{type(error).__name__}: {_line(error)}"
        raise VlmtuneError(f"{model_name}: its config.json describes no model: {said}", "download it again") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _on_meta(config: Json) -> "nn.Module":
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        whole = AutoConfig.for_model(**json.loads(json.dumps(config)))
        return AutoModelForImageTextToText.from_config(whole, attn_implementation=None, trust_remote_code=False)


def _eager(model: "nn.Module", text: str) -> tuple[str, ...]:
    """Return the outermost modules for which transformers chose eager attention, having no SDPA for them.

    What holds the language model beside others is no part: it says nothing of how those attend.
    """
    from transformers import PretrainedConfig

    found: list[str] = []
    for name, module in model.named_modules():
        config, holds_text = getattr(module, "config", None), f"{text}.".startswith(f"{name}." if name else "")
        inside = name.startswith(tuple(f"{part}." for part in found))
        if isinstance(config, PretrainedConfig) and not inside and (name == text or not holds_text):
            found += [name] if ATTN_IMPLEMENTATION.read(config) == "eager" else []
    return tuple(found)


def _outside(model: "nn.Module", text: str, head: str) -> dict[str, int]:
    """Return the outermost modules and parameters that hold neither language model nor head, with their numbers.

    Where the embedding's module holds the tower too, its children without a decoder layer count.
    """
    found: dict[str, int] = {}

    def look(module: "nn.Module", path: str) -> None:
        for name, parameter in module.named_parameters(recurse=False):
            if path != text:
                found[f"{path}.{name}".lstrip(".")] = parameter.numel()
        for name, child in module.named_children():
            child_path = f"{path}.{name}".lstrip(".")
            size = sum(parameter.numel() for parameter in child.parameters())
            if child_path == head or size == 0:
                continue
            if text == child_path or text.startswith(child_path + ".") or head.startswith(child_path + "."):
                look(child, child_path)
            elif path == text or path.startswith(text + "."):
                if SEEING.search(name) or OTHER.search(name):
                    found[child_path] = size
            else:
                found[child_path] = size

    look(model, "")
    return found


SEEING = re.compile(r"vis|image|img|vq|tower|projector|connector|aligner")


def _linears(part: "nn.Module", without: tuple[str, ...] | list[str], path: str) -> tuple[str, ...]:
    """Return the names of the part's linear layers, less routers and names that also stand for something else."""
    from torch import nn

    inside = tuple(f"{other.removeprefix(path + '.')}." for other in without if other.startswith(path + "."))
    kinds: dict[str, set[bool]] = {}
    for name, module in part.named_modules():
        if name and not f"{name}.".startswith(inside):
            kinds.setdefault(name.rpartition(".")[2], set()).add(type(module) is nn.Linear)
    names = {name for name, is_linear in kinds.items() if is_linear == {True}}
    return tuple(sorted(name for name in names if name not in ROUTERS and not name.isdecimal()))
