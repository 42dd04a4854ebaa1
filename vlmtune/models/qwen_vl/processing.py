"""Texts and images → what the model takes: ids with 256 slots an image, and pixels in a fixed square."""

from pathlib import Path
from typing import Any

from transformers import ProcessorMixin

from vlmtune.compat import modeling as borrowed
from vlmtune.compat.transformers import optional_file
from vlmtune.errors import VlmtuneError
from vlmtune.files import json_value
from vlmtune.models.qwen_vl.configuration import NUM_QUERIES, VISUAL_DEFAULTS
from vlmtune.models.qwen_vl.tokenizer import FILE_NAME, IMAGE, build_tokenizer
from vlmtune.reading import JSON_BYTES, read_regular

SYSTEM = "You are a helpful assistant."
CHAT_TEMPLATE = (
    "{% set images = namespace(count=0) %}"
    "{% if not messages or messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\n" + SYSTEM + "<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{% set images.count = images.count + 1 %}"
    "{{ 'Picture ' ~ images.count ~ ': <img><imgpad></img>\\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML as the model was tuned with; images are numbered through the conversation."""


class QwenVLImageProcessor(borrowed.PIL_BACKEND.get()):
    """Squashes every image to one square with PIL, whose resize is the one the model was trained with."""

    model_input_names = ["pixel_values"]
    resample = borrowed.RESAMPLING.get().BICUBIC
    size = {"height": VISUAL_DEFAULTS["image_size"], "width": VISUAL_DEFAULTS["image_size"]}
    image_mean = borrowed.IMAGE_MEAN.get()
    image_std = borrowed.IMAGE_STD.get()
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True


class QwenVLProcessor(ProcessorMixin):
    """Image processor, tokenizer and chat template. A text holds one `<imgpad>` an image, which becomes 256."""

    image_marks = IMAGE
    """Strings that only the chat template may write. The original opens a path or address between the first two."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs) -> None:
        self.image_token = IMAGE[-1]
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "QwenVLProcessor":
        """Return the processor of a folder or hub model, published (`qwen.tiktoken`) or saved by this class.

        Raises:
            VlmtuneError: neither kind of tokenizer is there, or it is damaged.
        """
        if _file(pretrained_model_name_or_path, "tokenizer.json", kwargs):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        ranks = _file(pretrained_model_name_or_path, FILE_NAME, kwargs)
        if ranks is None:
            raise VlmtuneError(
                f"{pretrained_model_name_or_path} has no {FILE_NAME}: there is no tokenizer", "download the model again"
            )
        config = _file(pretrained_model_name_or_path, "config.json", kwargs)
        visual = json_value(read_regular(config, JSON_BYTES)).get("visual") or {} if config else {}
        side_px = visual.get("image_size", VISUAL_DEFAULTS["image_size"])
        images = QwenVLImageProcessor(size={"height": side_px, "width": side_px})
        return cls(image_processor=images, tokenizer=build_tokenizer(ranks))

    def validate_inputs(self, images=None, text=None, **kwargs: Any) -> None:
        """Raise ValueError unless the texts hold one `<imgpad>` an image (older transformers do not count)."""
        super().validate_inputs(images=images, text=text, **kwargs)
        if text is not None:
            found, wanted = sum(part.count(self.image_token) for part in text), len(_flat(images))
            if found != wanted:
                raise ValueError(f"the texts hold {found} {self.image_token} for {wanted} images")

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """Return what stands for one image in the text that is tokenised."""
        return self.image_token * NUM_QUERIES


def _flat(images: Any) -> list:
    return borrowed.FLAT_LIST_OF_IMAGES(images) if images is not None else []


def _file(folder_or_id: str | Path, name: str, kwargs: dict[str, Any]) -> Path | None:
    """Return the file of a folder or hub model, or None when it has no such file."""
    hub = {key: kwargs[key] for key in ("cache_dir", "revision", "token", "local_files_only") if key in kwargs}
    return optional_file(str(folder_or_id), name, **hub)
