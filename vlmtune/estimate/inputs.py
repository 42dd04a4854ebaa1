"""The largest row that a config allows, made up: for estimating without a data set and without a tokenizer.

The image goes through the model's real image processor; text is as many tokens as `data.max_length` allows, half of it
answer.
"""

import transformers
from PIL import Image
from torch import Tensor, arange, full, ones_like, tensor, where

from vlmtune.data.encode import IGNORED, QFORMER_KEYS, Encoded
from vlmtune.errors import VlmtuneError
from vlmtune.models.families.base import Family
from vlmtune.models.families.instructblip import QFORMER_LIMIT
from vlmtune.models.qwen_vl import QwenVLImageProcessor
from vlmtune.models.qwen_vl.configuration import IMAGE_TOKEN_AFTER_START
from vlmtune.models.source import ModelSource
from vlmtune.plan import RunPlan

DEFAULT_IMAGE_PX = 1024
TEXT_TOKEN = 5  # any id below every special one
PROCESSORS = {
    "gemma3": "Gemma3ImageProcessor",
    "idefics3": "Idefics3ImageProcessor",
    "instructblip": "BlipImageProcessor",
    "llava": "CLIPImageProcessor",
    "paligemma": "SiglipImageProcessor",
    "qwen2_5_vl": "Qwen2VLImageProcessor",
    "qwen2_vl": "Qwen2VLImageProcessor",
    "qwen3_vl": "Qwen2VLImageProcessor",
    "smolvlm": "SmolVLMImageProcessor",
}
"""The image processor of each model_type, for models whose configs do not name it."""
NOT_FOR_THE_MODEL = ("rows", "cols", "num_crops")


def largest_row(plan: RunPlan, source: ModelSource, family: Family) -> Encoded:
    """Return one row with one square image as large as allowed and as much text as allowed."""
    side = plan.image_size or DEFAULT_IMAGE_PX
    images = _image_tensors(source, plan, Image.new("RGB", (side, side), "grey"))
    preprocessor = {**source.preprocessor, **plan.image_overrides}
    total = family.image_tokens(source.config, preprocessor, side, side)
    features = _feature_tokens(source, total, images)
    ids, is_feature, is_image = _tokens(source, plan.max_length, total, features)
    answer = arange(len(ids)) >= len(ids) - max(1, plan.max_length // 2)
    tensors = {"input_ids": ids[None], "attention_mask": ones_like(ids)[None], **images}
    kind = source.config["model_type"]
    if kind == "gemma3":
        tensors["token_type_ids"] = is_feature.long()[None]
    elif kind == "paligemma":
        tensors["token_type_ids"] = answer.long()[None]
    elif kind.startswith("qwen") and kind != "qwen":
        tensors["mm_token_type_ids"] = is_feature.int()[None]
    if family.qformer:
        most_tokens = min(plan.max_length, family.processor_settings(source.config)[QFORMER_LIMIT])
        tensors |= dict.fromkeys(QFORMER_KEYS, ones_like(ids)[None, :most_tokens])
    labels = where(answer, ids, full((), IGNORED))
    return Encoded(tensors, labels[None], is_image, "largest row allowed")


def _image_tensors(source: ModelSource, plan: RunPlan, image: Image.Image) -> dict[str, Tensor]:
    kind = source.config["model_type"]
    if kind == "qwen":
        return dict(QwenVLImageProcessor(**_square(source.config["visual"]["image_size"]))([image], return_tensors="pt"))
    if kind not in PROCESSORS:
        raise VlmtuneError(f"the images of model_type {kind} cannot be made up", "estimate with a config and its data")
    settings = {key: value for key, value in source.preprocessor.items() if not key.endswith(("_class", "_type"))}
    if not settings:
        side = source.config.get("vision_config", {}).get("image_size", 896 if kind == "gemma3" else 224)
        settings = _square(side)
    processor = getattr(transformers, PROCESSORS[kind])(**{**settings, **plan.image_overrides})
    images = [[image]] if kind in ("smolvlm", "idefics3") else [image]
    made = processor(images=images, return_tensors="pt")
    return {key: value for key, value in made.items() if key not in NOT_FOR_THE_MODEL}


def _square(side_px: int) -> dict[str, dict[str, int]]:
    return {"size": {"height": side_px, "width": side_px}}


def _feature_tokens(source: ModelSource, total: int, images: dict[str, Tensor]) -> int:
    """How many of an image's tokens hold its features; the others are markers."""
    config, kind = source.config, source.config["model_type"]
    if kind == "gemma3":
        return config.get("mm_tokens_per_image", 256)
    if kind in ("smolvlm", "idefics3"):
        vision = config["vision_config"]
        patches = images["pixel_values"].shape[-1] // vision.get("patch_size", 14)
        return images["pixel_values"].shape[1] * (patches**2 // config.get("scale_factor", 2) ** 2)
    return total


def _tokens(source: ModelSource, num_text: int, num_image: int, num_features: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids [T], where features go [T], and where the image's tokens are [T]: a start, the image, then text."""
    config = source.config
    image_id = config.get("image_token_id", config.get("image_token_index"))
    if config["model_type"] == "qwen":
        image_id = config["visual"]["image_start_id"] + IMAGE_TOKEN_AFTER_START
    start = config.get("vision_start_token_id", TEXT_TOKEN)
    markers = num_image - num_features
    ids = [start] + [TEXT_TOKEN] * markers + [image_id] * num_features + [TEXT_TOKEN] * (num_text - 1)
    places = arange(len(ids))
    is_image = (places >= 1) & (places < 1 + num_image)
    is_feature = (places >= 1 + markers) & (places < 1 + num_image)
    return tensor(ids), is_feature, is_image
