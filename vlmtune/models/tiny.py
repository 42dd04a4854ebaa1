"""A config.json shrunk to a tiny model of the same architecture, with the processor that goes with it.

Every trait is kept that decides which code runs: kinds of layers, patches, merges, tied heads; only numbers get small.
Sizes are multiples of 64, the smallest that bitsandbytes quantises.
"""

import re
from copy import deepcopy
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from vlmtune.families.base import Json
from vlmtune.families.standin import SAID, image_processor_of, standin_processor, token_of, tokens_per_view

if TYPE_CHECKING:
    from transformers import ProcessorMixin

WIDTH, HEADS, KV_HEADS, HEAD_DIM, LAYERS, EXPERTS = 64, 4, 2, 16, 2, 4
PATCHES_PER_SIDE = 4
Rule = tuple[str, Any]
RULES: tuple[Rule, ...] = (
    (r"(num_)?(hidden_|encoder_|decoder_)?layers|depth|n_layers?|num_blocks", LAYERS),
    (
        r"(num_|n_|encoder_|decoder_)?(attention_)?(attn_)?heads?|num_attention_heads|attn_heads|linear_num_\w+_heads",
        HEADS,
    ),
    (r"head_dim|\w+_head_dim|d_kv|kv_channels", HEAD_DIM),
    (r"(\w+_)?(q|kv|o)_lora_rank", 32),
    (r"(\w+_)?(intermediate_size|ffn_dim|mlp_dim|d_ff|dense_hidden_size)", 2 * WIDTH),
    (r"num_(local_|routed_)?experts|n_routed_experts|moe_num_experts", EXPERTS),
    (r"num_experts_per_tok|moe_k|top_k_experts|moe_topk|num_experts_per_token", 2),
    (r"n_group|topk_group|n_shared_experts|num_shared_experts|first_k_dense_replace", 1),
    (
        r"(\w+_)?(hidden_size|embed_dim|hidden_dim|d_model|projection_dim|output_dim|width|dim|n_embd|hidden_size_per_layer_input)",
        WIDTH,
    ),
    (r"max_position_embeddings|model_max_length", 4096),
    (r"sliding_window", 32),
)
ROPE = {"rope_type": "default", "rope_theta": 1e4}
MROPE = {"text_config": {"rope_parameters": {**ROPE, "mrope_section": [2, 3, 3]}}}
LLAMA = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "vocab_size": 0,
}
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "chameleon": {"vq_config": {"resolution": 64, "base_channels": 64, "channel_multiplier": [1, 1]}},
    "fast_vlm": {
        "vision_config": {
            "hidden_size": 3072,
            "model_type": "timm_wrapper",
            "architecture": "fastvit_mci3",
            "do_pooling": True,
            "model_args": {"inference_mode": True},
        }
    },
    "gemma4": {
        "vision_config": {
            "model_type": "gemma4_vision",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "global_head_dim": 16,
        }
    },
    "glm4v_moe": {"text_config": {"rope_parameters": {**ROPE, "mrope_section": [1, 1, 2]}}},
    "got_ocr2": {"vision_config": {"image_size": 1024}},
    "llama4": {"vision_config": {"intermediate_size": 4 * WIDTH}},
    "mllama": {"vision_config": {"vision_output_dim": 2 * WIDTH}},
    "instructblip": {"text_config": LLAMA, "num_query_tokens": 4},
    **dict.fromkeys(("glm46v", "glm4v", "glm_ocr", "glmga", "paddleocr_vl", "qwen2_5_vl", "qwen2_vl"), MROPE),
    "qwen2_5_omni_thinker": {**MROPE, "vision_start_token_id": 3, "audio_start_token_id": 3},
    "qwen3_omni_moe_thinker": {**MROPE, "vision_start_token_id": 3, "audio_start_token_id": 3},
    "gemma3n": {"text_config": {"num_kv_shared_layers": 0}},
    "vipllava": {"vision_config": {"num_hidden_layers": 3}, "vision_feature_layers": [-1, -2]},
}
"""What the rules do not shrink, or shrink too far, by model type."""
LEFT_OUT = ("id2label", "label2id", "quantization_config")
"""A tiny model is made in 16 bits, whatever the files of the large one have."""
KEPT = re.compile(r"rope_dim|temporal_dim|in_dim|num_mel")


def shrink(config: Json) -> dict[str, Any]:
    """Return the config of a tiny model of the same architecture, its vocabulary still to be set."""
    whole = AutoConfig.for_model(**deepcopy(dict(config))).to_dict()
    small = _section(whole)
    _merge(small, EXCEPTIONS.get(config["model_type"], {}))
    vision = small.get("vision_config") or {}
    for name in (name for name in SAID if isinstance(small.get(name), int)):
        small[name] = tokens_per_view({**small, **dict.fromkeys(SAID)}) or small[name]
    if small.get("image_grid_pinpoints") and isinstance(vision.get("image_size"), int):
        side = vision["image_size"]
        small["image_grid_pinpoints"] = [[side, 2 * side], [2 * side, side], [2 * side, 2 * side]]
    return small


def _merge(section: dict[str, Any], changes: Json) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(section.get(key), dict):
            _merge(section[key], value)
        else:
            section[key] = value


def _section(section: dict[str, Any]) -> dict[str, Any]:
    small = {key: _value(key, value) for key, value in section.items() if key not in LEFT_OUT}
    _fit_heads(small, section)
    _fit_rope(small)
    layers = next((key for key in small if _is_layers(key) and isinstance(section[key], int)), None)
    if layers is not None:
        _fit_lists(small, section, layers)
    patch_px = section.get("patch_size")
    if isinstance(section.get("image_size"), int) and isinstance(patch_px, int):
        small["image_size"] = patch_px * PATCHES_PER_SIDE * 2
    elif isinstance(section.get("image_size"), (list, tuple)) and isinstance(patch_px, (list, tuple)):
        small["image_size"] = [side * PATCHES_PER_SIDE * 2 for side in patch_px]
    return small


def _is_layers(key: Any) -> bool:
    return isinstance(key, str) and re.fullmatch(RULES[0][0], key) is not None


def _fit_heads(small: dict[str, Any], section: dict[str, Any]) -> None:
    """Keep whether heads share keys and values, and that heads times their width is the model's."""
    for key in ("num_key_value_heads", "num_global_key_value_heads", "attn_kv_heads", "num_kv_heads"):
        if isinstance(section.get(key), int):
            heads = section.get("num_attention_heads", section.get("num_heads"))
            small[key] = HEADS if section[key] == heads else KV_HEADS
    if "head_dim" in section and section["head_dim"] is None and "num_attention_heads" in section:
        small["head_dim"] = HEAD_DIM


def _fit_rope(small: dict[str, Any]) -> None:
    """Divide the rotated half of a head among time, height and width as before."""
    for key in ("rope_parameters", "rope_scaling"):
        rope = small.get(key)
        if not isinstance(rope, dict):
            continue
        for holder in (rope, *(value for value in rope.values() if isinstance(value, dict))):
            sections = holder.get("mrope_section") or holder.get("xdrope_section")
            if not sections:
                continue
            half = int(HEAD_DIM * (holder.get("partial_rotary_factor") or small.get("partial_rotary_factor") or 1)) // 2
            parts = [max(1, round(part * half / sum(sections))) for part in sections]
            parts[0] += half - sum(parts)
            holder["mrope_section" if "mrope_section" in holder else "xdrope_section"] = parts


def _value(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        if key == "per_layer_config":
            return {entry: value[entry] for entry in value if int(entry) < LAYERS}
        return _section(value)
    if isinstance(value, bool) or not isinstance(value, int) or KEPT.search(str(key)):
        return value
    return next((small for pattern, small in RULES if re.fullmatch(pattern, str(key)) and value > small), value)


def _fit_lists(small: dict[str, Any], section: dict[str, Any], layers: str) -> None:
    """Cut lists of one entry a layer to the layers that are left, every kind of layer kept; fit layer numbers."""
    per_layer = [key for key, value in section.items() if isinstance(value, list) and len(value) == section[layers]]
    kinds = max((len({str(entry) for entry in section[key]}) for key in per_layer), default=1)
    small[layers] = max(small[layers], kinds)
    for key in per_layer:
        distinct = list({str(entry): entry for entry in section[key]}.values())
        small[key] = (distinct * small[layers])[: small[layers]]
    for key, value in section.items():
        if key.endswith(("_indexes", "_indices", "_layers")) and isinstance(value, list) and key not in per_layer:
            small[key] = list(range(min(len(value), small[layers] - 1))) or value


def tiny_model(config: Json, preprocessor: Json, folder: Path, seed: int = 0) -> Path:
    """Write a tiny random checkpoint of this config's architecture into `folder` and return it.

    Raises:
        VlmtuneError: the processor cannot be made.
    """
    small = shrink(config)
    processor = standin_processor(small, tiny_preprocessor(small, preprocessor))
    tokenizer = processor.tokenizer
    set_token_ids(small, processor)
    tiny = AutoConfig.for_model(**small)
    tiny.get_text_config().vocab_size = len(tokenizer)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(tiny, dtype=torch.float32, trust_remote_code=False)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def set_token_ids(config: dict[str, Any], processor: "ProcessorMixin") -> None:
    """Make every token id in the config that of the processor's token of the same name."""
    tokenizer = processor.tokenizer
    for key, value in config.items():
        if isinstance(value, dict):
            set_token_ids(value, processor)
        elif key in ("vocab_size", "vocab_size_per_layer_input"):
            config[key] = len(tokenizer)
        elif found := re.fullmatch(r"(\w+)_token_(id|index)|image_token_index", str(key)):
            token_id = token_of(found.group(1) or "image", processor)
            if value is not None or (found.group(1) or "image") == "image":
                config[key] = token_id if token_id is not None else 3


def tiny_preprocessor(config: Json, preprocessor: Json) -> dict[str, Any]:
    """Return the image processor's settings for the tiny model: images of few patches."""
    settings = {**image_processor_of(config, preprocessor).to_dict(), **preprocessor}
    vision = config.get("vision_config") or {}
    patch = _one(vision.get("patch_size"), 14)
    side = _one(vision.get("image_size"), patch * PATCHES_PER_SIDE * 2)
    size = settings.get("size")
    for key in ("size", "crop_size", "max_image_size", "min_image_size"):
        if isinstance(settings.get(key), dict):
            settings[key] = {name: value and side for name, value in settings[key].items()}
    if isinstance(size, dict) and "shortest_edge" in size and (size.get("longest_edge") or 0) > 8192:
        settings["size"] = {"shortest_edge": side * side // 4, "longest_edge": side * side * 4}
    elif isinstance(size, dict) and "longest_edge" in size:
        settings["size"] = {name: side * (2 if name == "longest_edge" else 1) for name in size}
    if settings.get("image_grid_pinpoints"):
        settings["image_grid_pinpoints"] = [[side, 2 * side], [2 * side, side], [2 * side, 2 * side]]
    if "patch_size" in settings and "patch_size" in vision:
        settings["patch_size"] = vision["patch_size"]
    if config["model_type"] == "cohere2_vision":  # by this name it has the side of a tile in tokens
        settings["patch_size"] = isqrt(tokens_per_view(config))
    if "tile_size" in settings:
        settings["tile_size"] = side
    return {key: value for key, value in settings.items() if value is not None}


def _one(value: Any, default: int) -> int:
    """Return a side that is given as one number or as two equal ones."""
    return value if isinstance(value, int) else value[0] if isinstance(value, (list, tuple)) else default
