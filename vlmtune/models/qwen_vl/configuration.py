"""The configuration of Qwen-VL, in the words of the published config.json."""

from typing import Any

from transformers import PreTrainedConfig, Qwen2Config

from vlmtune.compat.modeling import ATTN_IMPLEMENTATION
from vlmtune.errors import VlmtuneError

VISUAL_DEFAULTS = {
    "image_size": 448,
    "patch_size": 14,
    "width": 1664,
    "layers": 48,
    "heads": 16,
    "mlp_ratio": 4.9231,
    "output_dim": 4096,
    "image_start_id": 151857,
}
NUM_QUERIES = 256
"""Features of one image, whatever its size."""
HEAD_DIM_OF_RESAMPLER = 128
IMAGE_TOKEN_AFTER_START = 2
"""`<imgpad>` is the second id after `<img>`; the one between them is `</img>`."""


class QwenVLConfig(PreTrainedConfig):
    """Everything that the model and its processor are built from."""

    model_type = "qwen"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 151936
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    kv_channels: int = 128
    intermediate_size: int = 22016
    """Of gate and up projection together: each is half as wide."""
    layer_norm_epsilon: float = 1e-6
    rotary_emb_base: float = 10000
    rotary_pct: float = 1.0
    seq_length: int = 2048
    """The longest sequence of the original training; beyond it the two settings below act."""
    max_position_embeddings: int = 8192
    use_dynamic_ntk: bool = True
    use_logn_attn: bool = True
    no_bias: bool = True
    attn_dropout_prob: float = 0.0
    emb_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    visual: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("auto_map", None)  # names code files of the original repository, which are never run
        self.visual = VISUAL_DEFAULTS | (self.visual or {})
        super().__post_init__(**kwargs)
        self._refuse_unsupported()

    @property
    def image_token_id(self) -> int:
        """The id that stands for one feature of an image."""
        return self.visual["image_start_id"] + IMAGE_TOKEN_AFTER_START

    def language_model(self) -> Qwen2Config:
        """Return the same language model in the words of Qwen2, whose layers compute exactly the same."""
        config = Qwen2Config(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size // 2,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_attention_heads,
            max_position_embeddings=self.max_position_embeddings,
            rms_norm_eps=self.layer_norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": float(self.rotary_emb_base)},
            initializer_range=self.initializer_range,
            use_cache=self.use_cache,
            tie_word_embeddings=self.tie_word_embeddings,
            dtype=self.dtype,
            attn_implementation=ATTN_IMPLEMENTATION.read(self),
        )
        for key in ("seq_length", "use_dynamic_ntk", "use_logn_attn"):
            setattr(config, key, getattr(self, key))
        return config

    def _refuse_unsupported(self) -> None:
        visual, out = self.visual, self.visual["output_dim"]
        wrong = [
            (self.kv_channels * self.num_attention_heads != self.hidden_size, "kv_channels × heads is not hidden_size"),
            (out != self.hidden_size, "visual.output_dim is not hidden_size"),
            (out % HEAD_DIM_OF_RESAMPLER, f"visual.output_dim is no multiple of {HEAD_DIM_OF_RESAMPLER}"),
            (visual["width"] % visual["heads"], "visual.width is no multiple of visual.heads"),
            (visual["image_size"] % visual["patch_size"], "visual.image_size is no multiple of visual.patch_size"),
            (self.rotary_pct != 1.0, "rotary_pct is not 1.0"),
            (not self.no_bias, "no_bias is false"),
            (self.attn_dropout_prob or self.emb_dropout_prob, "dropout is not 0"),
        ]
        problems = [text for failed, text in wrong if failed]
        if problems:
            raise VlmtuneError(
                f"config.json is not that of a Qwen-VL model: {'; '.join(problems)}", "download the model again"
            )
