"""InstructBLIP with a Vicuna: fixed tower, a Q-Former that reads the question too, 32 query tokens before the text."""

from typing import Any

from vlmtune.families.base import LLAMA_LINEARS, Family, ImageSettings, Json, fixed_input

DEFAULT_QUERY_TOKENS = 32
DEFAULT_QFORMER_POSITIONS = 512
QFORMER_LIMIT = "qformer_tokenizer.model_max_length"


def image_tokens(config: Json, preprocessor: Json, width_px: int, height_px: int) -> int:
    """The queries, whatever the image's size."""
    return config.get("num_query_tokens", DEFAULT_QUERY_TOKENS)


def image_settings(config: Json, preprocessor: Json, image_size: int | None) -> ImageSettings:
    """The tower has a fixed input."""
    return fixed_input((config.get("vision_config") or {}).get("image_size", 224), image_size)


def processor_settings(config: Json) -> dict[str, Any]:
    """The number of queries, which files before 2024's end lack, and the longest question that the Q-Former reads."""
    qformer = config.get("qformer_config") or {}
    return {
        "num_query_tokens": image_tokens(config, {}, 0, 0),
        QFORMER_LIMIT: qformer.get("max_position_embeddings", DEFAULT_QFORMER_POSITIONS),
    }


FAMILY = Family(
    name="instructblip",
    model_types=("instructblip",),
    text="language_model.model",
    vision="vision_model",
    projector=("qformer", "query_tokens", "language_projection"),
    text_linears=LLAMA_LINEARS,
    vision_linears=("qkv", "projection", "fc1", "fc2"),
    image_tokens=image_tokens,
    image_settings=image_settings,
    head="language_model.lm_head",
    needs_image=True,
    qformer=True,
    not_packable="their Q-Former reads each row's question on its own",
    not_cacheable="the Q-Former reads the question beside the image",
    part_types={"text_config": ("llama",)},  # the others are encoder-decoders, or have layers of other names
    # The published processor_config.json names the class for videos.
    processor_class="InstructBlipProcessor",
    processor_settings=processor_settings,
)
