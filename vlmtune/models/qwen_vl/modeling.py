"""Qwen-VL as an ordinary transformers model: `model.visual`, `model.language_model`, `lm_head`."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast

from vlmtune.compat import modeling as borrowed
from vlmtune.models.qwen_vl.configuration import NUM_QUERIES, QwenVLConfig
from vlmtune.models.qwen_vl.language import QwenVLLanguageModel
from vlmtune.models.qwen_vl.vision import QwenVLResampler, QwenVLResamplerAttention, QwenVLVisionTower, sine_places

can_return_tuple = borrowed.CAN_RETURN_TUPLE.get()
initialization = borrowed.INITIALIZATION.get()


class QwenVLPreTrainedModel(PreTrainedModel):
    """What transformers must know of both classes below."""

    config_class = QwenVLConfig
    config: QwenVLConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["QwenVLDecoderLayer", "QwenVLVisionBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fill what no file gave. Only through `initialization`, which leaves loaded tensors alone."""
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, QwenVLVisionTower):
            initialization.normal_(module.positional_embedding, std=std)
            initialization.normal_(module.proj, std=std)
        elif isinstance(module, QwenVLResampler):
            initialization.normal_(module.query, std=std)
            initialization.copy_(module.pos_embed, sine_places(*module.pos_embed.shape))
        elif isinstance(module, QwenVLResamplerAttention):
            initialization.normal_(module.in_proj_weight, std=std)
            initialization.zeros_(module.in_proj_bias)


@dataclass
class QwenVLModelOutput(BaseModelOutputWithPast):
    """States of the language model, and the features that were put in place of image tokens."""

    image_hidden_states: Tensor | None = None


@dataclass
class QwenVLOutput(CausalLMOutputWithPast):
    """The same with logits and loss."""

    image_hidden_states: Tensor | None = None


class QwenVLModel(QwenVLPreTrainedModel):
    """Vision tower and language model, without the head."""

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__(config)
        self.visual = QwenVLVisionTower(config)
        self.language_model = QwenVLLanguageModel(config.language_model())
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.embed_tokens = value

    def get_image_features(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        """Return the features [images, 256, H] of pixels [images, 3, height, width] as `pooler_output`."""
        return self.visual(pixel_values)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> QwenVLModelOutput:
        """Return the final states. `position_ids` are not used: a token's position is its column."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        features = None
        if pixel_values is not None:
            features = self.get_image_features(pixel_values).pooler_output
            features = features.to(inputs_embeds.device, inputs_embeds.dtype)
            inputs_embeds = self._with_images(input_ids, inputs_embeds, features)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        return QwenVLModelOutput(image_hidden_states=features, **outputs)

    def _with_images(self, input_ids: Tensor | None, inputs_embeds: Tensor, features: Tensor) -> Tensor:
        """Return the embeddings with the features in place of the image tokens, in order of appearance."""
        if input_ids is None:
            raise ValueError("pixel_values need input_ids: they say where the images are")
        is_image = input_ids == self.config.image_token_id
        found, wanted = int(is_image.sum()), features.shape[0] * NUM_QUERIES
        if found != wanted:
            raise ValueError(f"the ids hold {found} image tokens, and {features.shape[0]} images need {wanted}")
        return inputs_embeds.masked_scatter(is_image.unsqueeze(-1).to(inputs_embeds.device), features)


class QwenVLForConditionalGeneration(QwenVLPreTrainedModel, GenerationMixin):
    """The whole model."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__(config)
        self.model = QwenVLModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_image_features(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        """Return the features [images, 256, H] of pixels [images, 3, height, width] as `pooler_output`."""
        return self.model.get_image_features(pixel_values)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        is_first_iteration: bool | None = False,
        **kwargs,
    ) -> dict[str, Any]:
        """Return the next pass's inputs: those of a first pass where the text has outgrown its cache."""
        if self.model.language_model.has_outgrown(past_key_values, input_ids.shape[1]):
            past_key_values.crop(-past_key_values.get_seq_length())
            next_sequence_length, is_first_iteration = None, True
        return super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> QwenVLOutput:
        """Return logits [B, T, V] and, with `labels`, the mean cross-entropy of each token from the ones before it."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return QwenVLOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )
