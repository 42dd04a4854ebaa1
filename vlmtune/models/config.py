"""config.json as the library reads it, with what some files leave out, and the attention asked for beside it."""

from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from vlmtune.families.base import Family
from vlmtune.models.opened.processor import open_processor
from vlmtune.plan.types import RunPlan


def read_config(plan: RunPlan, folder: Path, family: Family) -> PretrainedConfig:
    """Return the config of the model in `folder`, which loading and the model without weights are made from."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if plan.has_own_head:
        # Mistral Small 3.1 and InternVL3 say nothing of it, and the library's default would make head and embedding one
        # until it has read both and found them different.
        config.tie_word_embeddings = False
    if family.qformer and config.image_token_index is None:
        # InstructBLIP's lacked it until the end of 2024. The processor adds the token to a tokenizer without it.
        tokenizer = open_processor(folder, family.processor_class or "AutoProcessor").tokenizer
        config.image_token_index = tokenizer.get_vocab().get("<image>", len(tokenizer))
    return config


def attention_asked_for(plan: RunPlan) -> str | None:
    """Return transformers' `attn_implementation`; None: SDPA for each part that has it, eager attention for others.

    Asked for `sdpa`, it refuses a model with one part that lacks it, be it an audio tower that is given nothing.
    """
    return None if plan.attention == "sdpa" else plan.attention
