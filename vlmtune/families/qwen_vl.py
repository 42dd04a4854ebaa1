"""Qwen-VL-Chat: a large ViT, a resampler that makes 256 tokens of any image, and a Qwen language model."""

from vlmtune.errors import VlmtuneError
from vlmtune.families.base import LLAMA_LINEARS, Family, ImageSettings, Json, fixed_input
from vlmtune.families.boxes import QWEN_VL

TOKENS_PER_IMAGE = 256  # the start and end markers count as text
DEFAULT_SIDE_PX = 448
NATIVE_TOKENS = 2048  # of a longer text, every position is scaled by its length


def image_tokens(config: Json, preprocessor: Json, width_px: int, height_px: int) -> int:
    """A fixed number, whatever the image's size."""
    return TOKENS_PER_IMAGE


def image_settings(config: Json, preprocessor: Json, image_size: int | None) -> ImageSettings:
    """The tower has a fixed input."""
    if not config.get("visual"):
        raise VlmtuneError(
            "model.name: this Qwen model reads text only: its config.json has no part `visual`",
            "give a vision-language model, such as Qwen/Qwen-VL-Chat",
        )
    return fixed_input(config["visual"].get("image_size", DEFAULT_SIDE_PX), image_size)


FAMILY = Family(
    name="qwen_vl",
    model_types=("qwen",),
    text="model.language_model",
    vision="model.visual",
    projector=("model.visual.attn_pool", "model.visual.ln_post", "model.visual.proj"),
    text_linears=LLAMA_LINEARS,
    vision_linears=("in_proj", "out_proj", "c_fc", "c_proj"),
    image_tokens=image_tokens,
    image_settings=image_settings,
    boxes={"qwen": QWEN_VL},
    most_pack_tokens=NATIVE_TOKENS,
)
