"""Builds the demo's base model, processor and tokenizer from nothing, without a network.

LLaVA in miniature: CLIP vision tower, two-layer projector, Llama text model. All widths are
multiples of 64, the block size of 4-bit weights. Only `vlmtune.demo.pretrain` imports this file.
"""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

IMAGE_PIXELS = 32
PATCH_PIXELS = 8
MAX_TEXT_TOKENS = 512
SPECIAL_TOKENS = ("<pad>", "</s>", "<image>")
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- message['role'] | upper + ':' -}}
{%- set parts = message['content'] -%}
{%- if parts is string -%}{%- set parts = [{'type': 'text', 'text': parts}] -%}{%- endif -%}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}
{%- for part in parts -%}{{- ' ' + part['text'] -}}{%- endfor -%}
{{- eos_token -}}
{%- endgeneration -%}
{%- else -%}
{%- for part in parts -%}
{{- ' ' + ('<image>' if part['type'] == 'image' else part['text']) -}}
{%- endfor -%}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""


def build_processor(words: list[str]) -> LlavaProcessor:
    """Returns a processor whose tokenizer spells any text and holds each given word whole."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_PIXELS},
        crop_size={"height": IMAGE_PIXELS, "width": IMAGE_PIXELS},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=_build_tokenizer(words),
        patch_size=PATCH_PIXELS,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which "default" drops again
        chat_template=CHAT_TEMPLATE,
    )


def _build_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer with a merge path to each word behind a space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # never reached: merging stops once every word is one token
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    roles = ["USER", "ASSISTANT"]  # each stands at the start of a line, without a space
    tokenizer.train_from_iterator(roles + [f" {word}" for word in words], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=MAX_TEXT_TOKENS,
        padding_side="right",
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """Returns the untrained model in float32; seed torch before the call."""
    pad_id, end_id, image_id = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_PIXELS,
        patch_size=PATCH_PIXELS,
        projection_dim=128,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_TEXT_TOKENS,
        bos_token_id=None,
        eos_token_id=end_id,
        pad_token_id=pad_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_id,
        image_seq_length=(IMAGE_PIXELS // PATCH_PIXELS) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=end_id, pad_token_id=pad_id, max_new_tokens=8, do_sample=False
    )
    return model
