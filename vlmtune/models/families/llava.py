"""LLaVA 1.5: CLIP tower, two-layer projector, Llama-type language model."""

from vlmtune.models.families.base import CLIP_LINEARS, LLAMA_LINEARS, Family, ImageSettings, Json, fixed_input

# The published template puts no end token after an answer, so a model tuned with it never learns to stop.
# This one differs in that token alone, where the original LLaVA code has it too.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ eos_token if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def _side_px(config: Json, preprocessor: Json) -> int:
    crop = preprocessor.get("crop_size") or {}
    return crop.get("height") or config.get("vision_config", {}).get("image_size", 336)


def image_tokens(config: Json, preprocessor: Json, width_px: int, height_px: int) -> int:
    """Patches of the square input; the class token is dropped. 576 for LLaVA 1.5, whatever the image's size."""
    patches_per_side = _side_px(config, preprocessor) // config.get("vision_config", {}).get("patch_size", 14)
    return patches_per_side**2 + (config.get("vision_feature_select_strategy", "default") == "full")


def image_settings(config: Json, preprocessor: Json, image_size: int | None) -> ImageSettings:
    """The tower has a fixed input."""
    return fixed_input(_side_px(config, preprocessor), image_size)


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
)
