"""The real processor of a model with a stand-in tokenizer: counts image tokens and makes up rows without any files.

The tokenizer works on bytes and has every special token that the processor's code names.
"""

import inspect
import re
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from vlmtune.compat import transformers as borrowed
from vlmtune.errors import VlmtuneError
from vlmtune.families.base import Json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, ProcessorMixin

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}IMAGE{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKEN = re.compile(r"""["'](</?[^"'<>\s{}]+>|<\|[^"'|\s{}]+\|>|\[[A-Z_]+\])["']""")
NAMED = re.compile(r"""tokenizer(?:\.|, ["'])(\w+_token)(?:_id)?\b""")
ORDINARY = {"bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"}
TILES = [f"<row_{row}_col_{column}>" for row in range(1, 13) for column in range(1, 13)]
PROCESSORS = {
    "cosmos3_omni": "Qwen3VLProcessor",
    "fast_vlm": "LlavaProcessor",
    "glm_ocr": "Glm46VProcessor",
    "glmga": "Glm46VProcessor",
    "kosmos-2": "Kosmos2Processor",
    "kosmos-2.5": "Kosmos2_5Processor",
    "qwen2_5_omni_thinker": "Qwen2_5OmniProcessor",
    "qwen3_omni_moe_thinker": "Qwen3OmniMoeProcessor",
}
"""Of model types that transformers maps to none."""


def byte_tokenizer(
    special: list[str], *, bos: str | None = None, eos: str, pad: str, **named: str
) -> "PreTrainedTokenizerFast":
    """Return a byte-level tokenizer with these special tokens; a blank line is one token, as in real vocabularies."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, "ĊĊ"])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "Ċ")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=bos, eos_token=eos, pad_token=pad, extra_special_tokens=named or None
    )


def processor_class_of(config: Json, preprocessor: Json) -> type:
    """Return the class of the model's processor."""
    import transformers

    kind = config["model_type"]
    named = preprocessor.get("processor_class")
    name = (
        named
        if named and hasattr(transformers, named)
        else PROCESSORS.get(kind) or borrowed.PROCESSOR_NAMES.get().get(kind)
    )
    if name is None:
        raise VlmtuneError(f"no processor is known for model_type {kind}", "estimate with the model's folder and data")
    return getattr(transformers, name)


def standin_processor(config: Json, preprocessor: Json) -> "ProcessorMixin":
    """Return the processor of this model with a stand-in tokenizer.

    Raises:
        VlmtuneError: the model's processor cannot be made from its configs alone.
    """
    config, preprocessor = _complete(config), deepcopy(dict(preprocessor))  # processors write into what they are given
    processor_class = processor_class_of(config, preprocessor)
    known = _known_values(config, preprocessor)
    arguments: dict[str, Any] = {}
    for argument, parameter in inspect.signature(processor_class.__init__).parameters.items():
        if argument == "tokenizer":
            arguments[argument] = _tokenizer_for(processor_class)
        elif argument in borrowed.PROCESSOR_PARTS.read(processor_class)():
            arguments[argument] = _part(argument, config, preprocessor)
        elif argument in known and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            arguments[argument] = known[argument]
    try:
        processor = processor_class(**arguments)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        reason = f"{processor_class.__name__} cannot be made from the configs alone: {error}"
        raise VlmtuneError(reason, "estimate with the model's folder and data") from None
    processor.chat_template = CHAT_TEMPLATE.replace("IMAGE", placeholder(processor))
    return processor


def _complete(config: Json) -> Json:
    """Return the config with the defaults of its classes, which published files leave out."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**deepcopy(dict(config))).to_dict()


BETWEEN_MARKS = ("HunYuanVLProcessor",)
"""Processors that refuse an image token without the marks around it."""


def placeholder(processor: "ProcessorMixin") -> str:
    """Return the text that stands for one image."""
    token = str(getattr(processor, "image_token", None) or "<image>")
    if type(processor).__name__ in BETWEEN_MARKS:
        return f"{processor.image_start_token}{token}{processor.image_end_token}"
    return token


def token_of(name: str, processor: "ProcessorMixin") -> int | None:
    """Return the id of a token by the config's name for it."""
    for holder in (processor.tokenizer, processor):
        value = getattr(holder, f"{name}_token_id", None)
        if isinstance(value, int):
            return value
        token = getattr(holder, f"{name}_token", None)
        if token is not None:
            return processor.tokenizer.convert_tokens_to_ids(str(token))
    return None


def _tokenizer_for(processor_class: type) -> "PreTrainedTokenizerFast":
    source = "".join(
        inspect.getsource(inspect.getmodule(kind))
        for kind in processor_class.__mro__
        if "processing_" in kind.__module__ and not kind.__module__.startswith("transformers.processing")
    )
    written = list(dict.fromkeys(TOKEN.findall(source)))
    named = {
        name: f"<|{name}|>"
        for name in dict.fromkeys(NAMED.findall(source))
        if name not in ORDINARY and not name.startswith("add_") and f"self.{name}.content" not in source
    }
    ends = ["<|bos|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
    tiles = TILES if "row_" in source else []
    special = list(dict.fromkeys([*ends, *written, *named.values(), *tiles]))
    return byte_tokenizer(special, bos="<|bos|>", eos="<|im_end|>", pad="<|endoftext|>", **named)


def _part(argument: str, config: Json, preprocessor: Json) -> Any:
    """Return an image processor with the model's settings, or another part with its defaults."""
    import transformers

    if argument == "image_processor":
        return image_processor_of(config, preprocessor)
    if argument == "qformer_tokenizer":
        return byte_tokenizer(["<|pad|>"], eos="<|pad|>", pad="<|pad|>")
    tables = {
        "video_processor": borrowed.VIDEO_PROCESSOR_NAMES,
        "feature_extractor": borrowed.FEATURE_EXTRACTOR_NAMES,
    }
    kinds = _kinds(config, preprocessor)
    name = PARTS.get((kinds[0], argument)) or _named(tables[argument].get() if argument in tables else {}, kinds)
    return getattr(transformers, name)() if name else None


def _kinds(config: Json, preprocessor: Json) -> tuple[str, str]:
    """Return the model type, and the one whose processor the model has."""
    return config["model_type"], processor_class_of(config, preprocessor).__module__.split(".")[-2]


def _named(mapping: Json, kinds: tuple[str, ...]) -> str | None:
    """Return the class that transformers maps the first known of these model types to."""
    for kind in kinds:
        if name := mapping.get(kind):
            return name if isinstance(name, str) else name.get("torchvision") or name.get("pil")
    return None


def image_processor_of(config: Json, preprocessor: Json) -> Any:
    """Return the image processor with these settings: the class they name, or that of the first known model type."""
    import transformers

    kinds = _kinds(config, preprocessor)
    named = str(preprocessor.get("image_processor_type", "")).removesuffix("Fast")
    by_type = PARTS.get((kinds[0], "image_processor")) or _named(borrowed.IMAGE_PROCESSOR_NAMES.get(), kinds)
    name = named if hasattr(transformers, named) else by_type
    if name is None:
        raise VlmtuneError(f"no image processor is known for model_type {kinds[0]}")
    settings = {key: value for key, value in preprocessor.items() if not key.endswith(("_class", "_type", "_map"))}
    processor_class = getattr(transformers, name)
    if "size" not in settings:
        settings = {**_sizes_of_tower(config, processor_class()), **settings}
    processor = processor_class(**settings)
    if borrowed.IMAGE_SEQ_LENGTH.read_or_none(processor) is None:
        borrowed.IMAGE_SEQ_LENGTH.write(processor, tokens_per_view(config))
    return processor


def _sizes_of_tower(config: Json, default: Any) -> dict[str, Any]:
    """Return the settings that follow from the tower's input, for files that do not say them."""
    vision = config.get("vision_config") or {}
    side = _first(vision.get("image_size"))
    found = {}
    for key in ("size", "crop_size"):
        sides = dict(getattr(default, key, None) or {})
        if (
            side
            and sides
            and all(value is None or name in ("height", "width", "shortest_edge") for name, value in sides.items())
        ):
            found[key] = {name: side for name, value in sides.items() if value is not None}
    for key, value in (
        ("image_grid_pinpoints", config.get("image_grid_pinpoints")),
        ("max_image_tiles", vision.get("max_num_tiles")),
    ):
        if value and hasattr(default, key):
            found[key] = value
    return found


PARTS = {
    ("fast_vlm", "image_processor"): "CLIPImageProcessor",
    ("llava", "image_processor"): "CLIPImageProcessor",
    ("qwen2_5_omni_thinker", "feature_extractor"): "WhisperFeatureExtractor",
    ("qwen2_5_omni_thinker", "image_processor"): "Qwen2VLImageProcessor",
    ("qwen2_5_omni_thinker", "video_processor"): "Qwen2VLVideoProcessor",
    ("qwen3_omni_moe_thinker", "feature_extractor"): "WhisperFeatureExtractor",
    ("qwen3_omni_moe_thinker", "image_processor"): "Qwen2VLImageProcessor",
    ("qwen3_omni_moe_thinker", "video_processor"): "Qwen2VLVideoProcessor",
}
"""Of model types that transformers maps to none, or to one that their published files do not use."""
SETTINGS = {"fast_vlm": {"patch_size": 64, "num_additional_image_tokens": 0, "vision_feature_select_strategy": "full"}}
"""What published processors say and their model configs do not."""
TOKENS_PER_VIEW = ("image_seq_length", "image_seq_len", "num_image_tokens")
"""Names of the processors' argument: image tokens of one tile or view."""
SAID = ("mm_tokens_per_image", "image_seq_length", "vision_soft_tokens_per_image", "num_image_tokens")
SHRINK = ("downsample_ratio", "downsample_factor", "scale_factor", "pixel_shuffle_ratio")


def _known_values(config: Json, preprocessor: Json) -> dict[str, Any]:
    """Return what the configs say of the numbers that processors take as arguments."""
    sections = [config.get("vision_config") or {}, config, preprocessor]
    known = {
        key: value for section in sections for key, value in section.items() if not key.startswith(("image_m", "im_"))
    }
    if tokens := tokens_per_view(config):
        known |= dict.fromkeys(TOKENS_PER_VIEW, tokens)
    vision = config.get("vision_config") or {}
    if isinstance(vision.get("patch_size"), int):
        known["patch_size"] = vision["patch_size"]
    if "clip" in str(vision.get("model_type", "")) and "siglip" not in str(vision.get("model_type", "")):
        known["num_additional_image_tokens"] = 1
        known.setdefault("vision_feature_select_strategy", "default")
    known |= SETTINGS.get(config["model_type"], {})
    if side := _first(vision.get("image_size")):
        known["img_size"] = side
    known.pop("image_token", None)
    return known


def tokens_per_view(config: Json) -> int | None:
    """Return the tokens that the model makes of one tile: as its config says, or its patches less what is merged."""
    for name in SAID:
        if isinstance(config.get(name), int):
            return config[name]
    vision = config.get("vision_config") or {}
    side, patch = (_first(vision.get(key)) for key in ("image_size", "patch_size"))
    if not side or not patch:
        return None
    factor = next((config[name] for name in SHRINK if config.get(name)), 1)
    return round((side // patch) ** 2 * (factor**2 if factor < 1 else factor**-2))


def _first(value: Any) -> int | None:
    return value[0] if isinstance(value, (list, tuple)) else value
