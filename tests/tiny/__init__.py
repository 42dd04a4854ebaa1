"""Tiny random models of every family, built in memory and saved as ordinary checkpoints: tests need no network.

Sizes are the smallest that bitsandbytes quantises (hidden sizes are multiples of 64) and that keep each trait:
tiles, merged patches, deepstack, window attention, tied and untied heads.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from vlmtune.families.standin import byte_tokenizer as tokenizer
from vlmtune.models.qwen_vl import QwenVLConfig, QwenVLForConditionalGeneration, QwenVLImageProcessor, QwenVLProcessor
from vlmtune.models.qwen_vl.tokenizer import wrap_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for p in m['content'] %}{% if p['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ p['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOL = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}"
    "{{ ':' if m['content'][0]['type'] == 'image' else ': ' }}"
    "{% for p in m['content'] %}{{ p['text'] if p['type'] == 'text' else '<image>' }}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{% for p in m['content'] %}{{ p['text'] | trim if p['type'] == 'text' else '<start_of_image>' }}{% endfor %}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# As published: no end token after the answer.
LLAVA = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for p in m['content'] if p['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
}
SIGLIP = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 14,
    "vision_use_head": False,
}
QWEN_ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}


def instructblip() -> tuple:
    tok = _starting_with(
        "</s>", tokenizer(["<unk>", "<s>", "</s>", "[PAD]", "<image>"], bos="</s>", eos="</s>", pad="[PAD]")
    )
    reader = _starting_with("[CLS]", tokenizer(["[PAD]", "[CLS]", "[SEP]"], eos="[SEP]", pad="[PAD]"), "[SEP]")
    images = hf.BlipImageProcessor(size={"height": 28, "width": 28})
    processor = hf.InstructBlipProcessor(images, tok, reader, num_query_tokens=4)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = hf.InstructBlipConfig(
        vision_config={**sizes, "image_size": 28, "patch_size": 14},
        qformer_config={**sizes, "vocab_size": len(reader), "max_position_embeddings": 512},
        text_config={"model_type": "llama", **TEXT, "vocab_size": len(tok)},
        num_query_tokens=4,
        image_token_index=tok.convert_tokens_to_ids("<image>"),
    )
    config.vision_config.initializer_range = 0.02
    return hf.InstructBlipForConditionalGeneration, config, processor


def _starting_with(start: str, tok: hf.PreTrainedTokenizerFast, end: str | None = None) -> hf.PreTrainedTokenizerFast:
    """Let the tokenizer put `start` before every text and `end` after it."""
    marks = [mark for mark in (start, end) if mark]
    tok.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join([start, "$A", *marks[1:]]),
        special_tokens=[(mark, tok.convert_tokens_to_ids(mark)) for mark in marks],
    )
    return tok


def llava() -> tuple:
    tok = tokenizer(["<s>", "</s>", "<pad>", "<image>"], bos="<s>", eos="</s>", pad="<pad>")
    images = hf.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = hf.LlavaProcessor(
        image_processor=images,
        tokenizer=tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA,
    )
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = hf.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **vision, "image_size": 28, "patch_size": 14},
        text_config={"model_type": "llama", **TEXT, "vocab_size": len(tok)},
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
    return hf.LlavaForConditionalGeneration, config, processor


def _qwen_tokenizer() -> hf.PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    return tokenizer([*special, "<|image_pad|>", "<|video_pad|>"], eos="<|im_end|>", pad="<|endoftext|>")


def _qwen_ids(tok: hf.PreTrainedTokenizerFast) -> dict[str, int]:
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return {key: tok.convert_tokens_to_ids(token) for key, token in names.items()}


def _qwen_processor(kind: type, tok: hf.PreTrainedTokenizerFast, video: type, patch_px: int) -> hf.ProcessorMixin:
    pixels = {"shortest_edge": 4 * (2 * patch_px) ** 2, "longest_edge": 64 * (2 * patch_px) ** 2}
    images = hf.Qwen2VLImageProcessor(size=pixels, patch_size=patch_px, merge_size=2, temporal_patch_size=2)
    return kind(image_processor=images, tokenizer=tok, video_processor=video(), chat_template=CHATML)


def qwen2_vl() -> tuple:
    tok = _qwen_tokenizer()
    config = hf.Qwen2VLConfig(
        vision_config={
            "depth": 2,
            "embed_dim": 64,
            "hidden_size": 64,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": 14,
        },
        text_config={**TEXT, "vocab_size": len(tok), "rope_parameters": QWEN_ROPE, "tie_word_embeddings": True},
        tie_word_embeddings=True,
        **_qwen_ids(tok),
    )
    processor = _qwen_processor(hf.Qwen2VLProcessor, tok, hf.Qwen2VLVideoProcessor, 14)
    return hf.Qwen2VLForConditionalGeneration, config, processor


def qwen2_5_vl() -> tuple:
    tok = _qwen_tokenizer()
    vision = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 64}
    config = hf.Qwen2_5_VLConfig(
        vision_config={**vision, "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]},
        text_config={**TEXT, "vocab_size": len(tok), "rope_parameters": QWEN_ROPE, "tie_word_embeddings": False},
        tie_word_embeddings=False,
        **_qwen_ids(tok),
    )
    processor = _qwen_processor(hf.Qwen2_5_VLProcessor, tok, hf.Qwen2VLVideoProcessor, 14)
    return hf.Qwen2_5_VLForConditionalGeneration, config, processor


def qwen3_vl() -> tuple:
    tok = _qwen_tokenizer()
    vision = {"depth": 3, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 64}
    config = hf.Qwen3VLConfig(
        vision_config={**vision, "patch_size": 16, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64},
        text_config={
            **TEXT,
            "vocab_size": len(tok),
            "rope_parameters": {**QWEN_ROPE, "mrope_interleaved": True},
            "tie_word_embeddings": True,
        },
        tie_word_embeddings=True,
        **_qwen_ids(tok),
    )
    processor = _qwen_processor(hf.Qwen3VLProcessor, tok, hf.Qwen3VLVideoProcessor, 16)
    return hf.Qwen3VLForConditionalGeneration, config, processor


def qwen() -> tuple:
    alphabet = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tok = wrap_tokenizer(Tokenizer(models.BPE(vocab=alphabet, merges=[])))
    images = QwenVLImageProcessor(size={"height": 56, "width": 56})
    visual = {"image_size": 56, "width": 64, "layers": 2, "heads": 2, "mlp_ratio": 2, "output_dim": 128}
    config = QwenVLConfig(
        vocab_size=len(tok),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        kv_channels=32,
        intermediate_size=256,
        visual={**visual, "patch_size": 14, "image_start_id": tok.convert_tokens_to_ids("<img>")},
    )
    return QwenVLForConditionalGeneration, config, QwenVLProcessor(images, tok)


def _smol_tokenizer() -> hf.PreTrainedTokenizerFast:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    special = ["<|im_start|>", "<end_of_utterance>", "<pad>", "<fake_token_around_image>", "<image>", "<global-img>"]
    return tokenizer([*special, *tiles], bos="<|im_start|>", eos="<end_of_utterance>", pad="<pad>")


def _smol_config(kind: type, tok: hf.PreTrainedTokenizerFast) -> hf.PreTrainedConfig:
    vision = {key: value for key, value in SIGLIP.items() if key != "vision_use_head"}
    return kind(
        vision_config={**vision, "image_size": 56},
        text_config={"model_type": "llama", **TEXT, "vocab_size": len(tok), "pad_token_id": tok.pad_token_id},
        scale_factor=2,
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        pad_token_id=tok.pad_token_id,
        tie_word_embeddings=False,
    )


def smolvlm() -> tuple:
    tok = _smol_tokenizer()
    images = hf.SmolVLMImageProcessor(size={"longest_edge": 168}, max_image_size={"longest_edge": 56})
    processor = hf.SmolVLMProcessor(
        image_processor=images,
        tokenizer=tok,
        video_processor=hf.SmolVLMVideoProcessor(),
        image_seq_len=4,
        chat_template=SMOL,
    )
    return hf.SmolVLMForConditionalGeneration, _smol_config(hf.SmolVLMConfig, tok), processor


def idefics3() -> tuple:
    tok = _smol_tokenizer()
    images = hf.Idefics3ImageProcessor(size={"longest_edge": 168}, max_image_size={"longest_edge": 56})
    processor = hf.Idefics3Processor(image_processor=images, tokenizer=tok, image_seq_len=4, chat_template=SMOL)
    return hf.Idefics3ForConditionalGeneration, _smol_config(hf.Idefics3Config, tok), processor


def gemma3() -> tuple:
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    special = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", *named.values()]
    tok = tokenizer(special, bos="<bos>", eos="<eos>", pad="<pad>", **named)
    images = hf.Gemma3ImageProcessor(size={"height": 56, "width": 56})
    processor = hf.Gemma3Processor(image_processor=images, tokenizer=tok, image_seq_length=4, chat_template=GEMMA)
    text = {**TEXT, "vocab_size": len(tok), "sliding_window": 32, "query_pre_attn_scalar": 16}
    config = hf.Gemma3Config(
        text_config={**text, "layer_types": ["sliding_attention", "full_attention"]},
        vision_config={**SIGLIP, "image_size": 56},
        mm_tokens_per_image=4,
        boi_token_index=tok.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tok.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tok.convert_tokens_to_ids("<image_soft_token>"),
    )
    return hf.Gemma3ForConditionalGeneration, config, processor


def paligemma() -> tuple:
    tok = tokenizer(["<pad>", "<eos>", "<bos>", "<image>"], bos="<bos>", eos="<eos>", pad="<pad>")
    images = hf.SiglipImageProcessor(size={"height": 56, "width": 56})
    images.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(image_processor=images, tokenizer=tok)
    config = hf.PaliGemmaConfig(
        text_config={"model_type": "gemma", **TEXT, "vocab_size": len(tok)},
        vision_config={**SIGLIP, "model_type": "siglip_vision_model", "image_size": 56, "projection_dim": 64},
        projection_dim=64,
        image_token_index=tok.convert_tokens_to_ids("<image>"),
    )
    return hf.PaliGemmaForConditionalGeneration, config, processor


TINY: dict[str, Callable[[], tuple]] = {
    builder.__name__: builder
    for builder in (gemma3, idefics3, instructblip, llava, paligemma, qwen, qwen2_5_vl, qwen2_vl, qwen3_vl, smolvlm)
}
"""One builder for each `model_type`: () -> (model class, config, processor)."""


def _fill(model: torch.nn.Module) -> None:
    """Put numbers into matrices of zeros, such as Gemma 3's projection, which would make every image the same."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2 and not parameter.any():
                parameter.normal_(std=0.02)


def save_tiny(model_type: str, folder: Path, seed: int = 0, layers: int = 2) -> Path:
    """Write the tiny random checkpoint of `model_type` into `folder` and return it; `layers` are the text model's."""
    model_class, config, processor = TINY[model_type]()
    vocabulary = len(processor.tokenizer)
    text = config.get_text_config()
    text.vocab_size, text.num_hidden_layers = vocabulary, layers
    if kinds := getattr(text, "layer_types", None):
        text.layer_types = [kinds[number % len(kinds)] for number in range(layers)]
    torch.manual_seed(seed)
    model = model_class(config)
    _fill(model)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
