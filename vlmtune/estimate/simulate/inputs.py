"""The largest row that a config allows, made up: for estimating without a data set and without a tokenizer.

The model's own processor makes it, with a stand-in for its tokenizer; text is as many tokens as `data.max_length`
allows, half of it answer, or more where a Q-Former reads no question that long.
"""

import dataclasses
import re

from PIL import Image
from torch import Tensor, full_like, where
from transformers import ProcessorMixin

from vlmtune.data.encode import IGNORED, Encoded, encode
from vlmtune.data.types import ImageRef, Sample, Turn
from vlmtune.families.base import Family, Json
from vlmtune.families.standin import byte_tokenizer, standin_processor, token_of
from vlmtune.hub.source import ModelSource
from vlmtune.models.processor import apply_settings
from vlmtune.models.qwen_vl import QwenVLImageProcessor, QwenVLProcessor
from vlmtune.models.qwen_vl.configuration import IMAGE_TOKEN_AFTER_START
from vlmtune.plan.types import RunPlan

DEFAULT_IMAGE_PX = 1024
SHARES_OF_LONGEST = (1.0, 0.75, 0.5, 0.25)
"""Texts of the made-up rows: batches of other lengths leave holes that the longest cannot use."""
SHORTEST_TEXT_TOKENS = 16
TEXT_TOKEN = 5  # any id below every special one
TOKEN_KEY = re.compile(r"(\w+)_token_(?:id|index)")
QWEN_VL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<imgpad>"]


def largest_rows(plan: RunPlan, source: ModelSource, family: Family) -> list[Encoded]:
    """Return the largest row that a plan allows, then some with less text."""
    lengths = (max(SHORTEST_TEXT_TOKENS, round(plan.max_length * share)) for share in SHARES_OF_LONGEST)
    return [largest_row(dataclasses.replace(plan, max_length=length), source, family) for length in lengths]


def largest_row(plan: RunPlan, source: ModelSource, family: Family) -> Encoded:
    """Return one row with one square image as large as allowed and as much text as allowed."""
    side = plan.image_size or DEFAULT_IMAGE_PX
    processor = processor_without_files(source, plan, family)
    image = Image.new("RGB", (side, side), "grey")
    shortest = encode(_sample(1, 1), [image], processor, family)
    marks = shortest.num_text_tokens - 2
    ends = int((shortest.labels != IGNORED).sum()) - 1
    most_question = _longest_question(processor) if family.qformer else plan.max_length
    question = min(most_question, max(1, plan.max_length - marks - max(1, plan.max_length // 2 - ends)))
    row = encode(_sample(question, max(1, plan.max_length - marks - question)), [image], processor, family)
    return with_own_ids(row, source.config, processor)


def _sample(question: int, answer: int) -> Sample:
    """Return a row whose question and answer have so many tokens of one character."""
    turns = (Turn("user", (ImageRef(path="made up"), "q" * question)), Turn("assistant", ("a" * answer,)))
    return Sample(turns, "largest row allowed")


def _longest_question(processor: ProcessorMixin) -> int:
    """Return how many tokens of a question a Q-Former reads."""
    tokenizer = processor.qformer_tokenizer
    return tokenizer.model_max_length - len(tokenizer("")["input_ids"])


def processor_without_files(source: ModelSource, plan: RunPlan, family: Family) -> ProcessorMixin:
    """Return the model's processor as the plan sets it, with a stand-in for its tokenizer."""
    processor = _processor(source, plan)
    apply_settings(processor, family.processor_settings(source.config))
    return processor


def _processor(source: ModelSource, plan: RunPlan) -> ProcessorMixin:
    if source.config["model_type"] == "qwen":
        side = source.config["visual"]["image_size"]
        tokenizer = byte_tokenizer(QWEN_VL_TOKENS, eos="<|im_end|>", pad="<|endoftext|>")
        return QwenVLProcessor(QwenVLImageProcessor(size={"height": side, "width": side}), tokenizer)
    return standin_processor(source.config, plan.preprocessor(source.preprocessor))


def with_own_ids(row: Encoded, config: Json, processor: ProcessorMixin) -> Encoded:
    """Return a row with the model's own numbers for the tokens that its config names; all others are plain text."""
    ids = _own_ids(row.tensors["input_ids"], config, processor)
    labels = where(row.labels == IGNORED, IGNORED, ids)
    return dataclasses.replace(row, tensors={**row.tensors, "input_ids": ids}, labels=labels)


def _own_ids(ids: Tensor, config: Json, processor: ProcessorMixin) -> Tensor:
    own = full_like(ids, TEXT_TOKEN)
    for name, token_id in _named_tokens(config).items():
        made = token_of(name, processor)
        if made is not None:
            own[ids == made] = token_id
    return own


def _named_tokens(config: Json) -> dict[str, int]:
    if config["model_type"] == "qwen":
        return {"image": config["visual"]["image_start_id"] + IMAGE_TOKEN_AFTER_START}
    named = {found.group(1): value for key, value in config.items() if (found := TOKEN_KEY.fullmatch(key))}
    ordinary = ("bos", "eos", "pad", "sep", "decoder_start")
    return {name: value for name, value in named.items() if isinstance(value, int) and name not in ordinary}
