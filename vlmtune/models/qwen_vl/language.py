"""The language model of Qwen-VL: layers of Qwen2, and two rules of its own for text beyond the training length.

Beyond `seq_length` columns, at inference, the rotary base grows (NTK) and queries are scaled (log-n). In training
neither is done. Padding counts as length, as in the original.
"""

import math

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, Qwen2Config
from transformers.modeling_outputs import BaseModelOutputWithPast

from vlmtune.compat import modeling as borrowed

Qwen2Attention = borrowed.QWEN2_ATTENTION.get()
Qwen2DecoderLayer = borrowed.QWEN2_DECODER_LAYER.get()
Qwen2PreTrainedModel = borrowed.QWEN2_PRETRAINED_MODEL.get()
Qwen2RMSNorm = borrowed.QWEN2_RMS_NORM.get()
apply_rotary_pos_emb = borrowed.APPLY_ROTARY_POS_EMB.get()
eager_attention_forward = borrowed.EAGER_ATTENTION.get()
attention_functions = borrowed.ATTENTION_FUNCTIONS.get()
create_causal_mask = borrowed.CREATE_CAUSAL_MASK.get()
merge_with_config_defaults = borrowed.MERGE_WITH_CONFIG_DEFAULTS.get()
capture_outputs = borrowed.CAPTURE_OUTPUTS.get()


class QwenVLAttention(Qwen2Attention):
    """Qwen2's attention with a factor for each query position."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Cache | None = None,
        query_scale: Tensor | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the mixed states [B, T, H] and the weights where the implementation gives them."""
        shape = hidden_states.shape[:-1]
        query, key, value = (
            projection(hidden_states).view(*shape, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if query_scale is not None:
            query = query * query_scale.to(query.dtype)[:, None]
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        wanted = borrowed.ATTN_IMPLEMENTATION.read(self.config)
        attend = attention_functions.get_interface(wanted, eager_attention_forward)
        mixed, weights = attend(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs)
        return self.o_proj(mixed.reshape(*shape, -1).contiguous()), weights


class QwenVLDecoderLayer(Qwen2DecoderLayer):
    """Qwen2's layer around that attention."""

    def __init__(self, config: Qwen2Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.self_attn = QwenVLAttention(config, layer_idx)


class QwenVLLanguageModel(Qwen2PreTrainedModel):
    """Embeddings, layers and final norm; no head."""

    _no_split_modules = ["QwenVLDecoderLayer"]
    _can_record_outputs = {"hidden_states": QwenVLDecoderLayer, "attentions": QwenVLAttention}

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(QwenVLDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Return the final states [B, T, H] and, with `use_cache`, the cache. Positions are column indices."""
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
        columns = torch.arange(past, past + inputs_embeds.shape[1], device=inputs_embeds.device)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=columns[None],
        )
        position_embeddings = self._rotations(columns, self._alpha(past, len(columns), past_key_values), inputs_embeds)
        hidden = inputs_embeds
        for layer in self.layers:
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                use_cache=use_cache,
                query_scale=self._query_scale(columns, past),
                **kwargs,
            )
        hidden = self.norm(hidden)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values if use_cache else None)

    def has_outgrown(self, cache: Cache | None, length: int) -> bool:
        """Return whether a cache holds keys of another NTK factor than a text of `length` columns has.

        Only where the text alone makes them anew. Generation then gives the same tokens with a cache as without.
        """
        whole = isinstance(cache, DynamicCache) and 0 < cache.get_seq_length() == length - 1
        return whole and self._alpha(0, length, None) != getattr(cache, "ntk_alpha", 1.0)

    def _alpha(self, past: int, new: int, cache: Cache | None) -> float:
        """Return the NTK factor: that of the first pass for everything that is added to its cache."""
        if self.training or not self.config.use_dynamic_ntk:
            return 1.0
        if past:
            return getattr(cache, "ntk_alpha", 1.0)
        alpha = ntk_alpha(new, self.config.seq_length)
        if cache is not None:
            cache.ntk_alpha = alpha
        return alpha

    def _rotations(self, columns: Tensor, alpha: float, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [1, T, head size]. Computed anew: a buffer that is in no file would not load."""
        size = self.config.hidden_size // self.config.num_attention_heads
        base = self.config.rope_parameters["rope_theta"] * alpha ** (size / (size - 2))
        frequencies = 1.0 / base ** (torch.arange(0, size, 2, dtype=torch.float32, device=columns.device) / size)
        angles = (columns.float()[:, None] * frequencies).repeat(1, 2)[None]
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)

    def _query_scale(self, columns: Tensor, past: int) -> Tensor | None:
        """Return log-n factors [T], or None when all are 1: log of the 1-based place to the base `seq_length`."""
        longest = self.config.seq_length
        if self.training or not self.config.use_logn_attn or past + len(columns) <= longest:
            return None
        return ((columns + 1).float().log() / math.log(longest)).clamp(min=1.0)


def ntk_alpha(length: int, trained_length: int) -> float:
    """Return by how much the rotary base grows for a text of `length` columns; 1 up to the trained length."""
    return max(2.0 ** math.ceil(math.log2(length / trained_length) + 1) - 1, 1.0)
