"""LLaVA 1.5: CLIP tower, two-layer projector, Llama-type language model."""

from typing import Any

from vlmtune.families.base import CLIP_LINEARS, LLAMA_LINEARS, Family, ImageSettings, Json, fixed_input

# The published template puts no end token after an answer, so a model tuned with it never learns to stop.
# This one differs in that token alone, where the original LLaVA code has it too.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ eos_token if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


LLAVA_TOWER = {"image_size": 336, "patch_size": 14}  # the library's, for a config.json without vision_config
CLIP_DEFAULTS = {"image_size": 224, "patch_size": 32}
SIGLIP_DEFAULTS = {"image_size": 224, "patch_size": 16}


def _tower(config: Json) -> Json:
    """The vision_config with what it leaves out."""
    vision = config.get("vision_config") or LLAVA_TOWER
    return {**(CLIP_DEFAULTS if _has_class_token(config) else SIGLIP_DEFAULTS), **vision}


def _has_class_token(config: Json) -> bool:
    vision = config.get("vision_config") or {}
    return vision.get("model_type", "clip_vision_model") == "clip_vision_model"


def _strategy(config: Json) -> str:
    """`default` leaves out the tower's first token, `full` none."""
    return config.get("vision_feature_select_strategy", "default")


def image_tokens(config: Json, preprocessor: Json, width_px: int, height_px: int) -> int:
    """Patches of the square input; the class token is dropped. 576 for LLaVA 1.5, whatever the image's size."""
    tower = _tower(config)
    patches = (tower["image_size"] // tower["patch_size"]) ** 2
    return patches + _has_class_token(config) - (_strategy(config) == "default")


def image_settings(config: Json, preprocessor: Json, image_size: int | None) -> ImageSettings:
    """The tower has a fixed input."""
    return fixed_input(_tower(config)["image_size"], image_size)


def processor_settings(config: Json) -> dict[str, Any]:
    """What the processor needs to count image tokens; the files of 2024 and before have none of it, or half."""
    return {
        "patch_size": _tower(config)["patch_size"],
        "vision_feature_select_strategy": _strategy(config),
        "num_additional_image_tokens": int(_has_class_token(config)),
    }


FAMILY = Family(
    name="llava",
    model_types=("llava",),
    text="model.language_model",
    vision="model.vision_tower",
    projector=("model.multi_modal_projector",),
    text_linears=LLAMA_LINEARS,
    vision_linears=CLIP_LINEARS,
    image_tokens=image_tokens,
    image_settings=image_settings,
    chat_template=CHAT_TEMPLATE,
    # Pixtral's config.json says llava too: its tower takes images of any size.
    part_types={"vision_config": ("clip_vision_model", "siglip_vision_model", None)},
    processor_settings=processor_settings,
)
