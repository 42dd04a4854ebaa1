"""Names of transformers that a model written here stands on: Qwen-VL's, for which the library has no code."""

from vlmtune.compat.borrowed import Attribute, Name, Override
from vlmtune.compat.libraries import TRANSFORMERS

PRETRAINED_MODEL = "transformers.PreTrainedModel"
QWEN2 = "transformers.models.qwen2.modeling_qwen2"
QWEN_VL = "vlmtune.models.qwen_vl"
SAME_LAYERS = "Qwen-VL's language model has Qwen2's layers, and the 4-bit and attention code made for them."

QWEN2_ATTENTION = Name(TRANSFORMERS, f"{QWEN2}.Qwen2Attention", SAME_LAYERS, takes="config, layer_idx")
QWEN2_DECODER_LAYER = Name(TRANSFORMERS, f"{QWEN2}.Qwen2DecoderLayer", SAME_LAYERS, takes="config, layer_idx")
QWEN2_PRETRAINED_MODEL = Name(TRANSFORMERS, f"{QWEN2}.Qwen2PreTrainedModel", SAME_LAYERS, takes="config")
QWEN2_RMS_NORM = Name(TRANSFORMERS, f"{QWEN2}.Qwen2RMSNorm", SAME_LAYERS, takes="hidden_size, *, eps")
APPLY_ROTARY_POS_EMB = Name(TRANSFORMERS, f"{QWEN2}.apply_rotary_pos_emb", SAME_LAYERS, takes="q, k, cos, sin")
APPLY_ROTARY_POS_EMB_VISION = Name(
    TRANSFORMERS,
    "transformers.models.qwen2_vl.modeling_qwen2_vl.apply_rotary_pos_emb_vision",
    "what towers turn queries and keys with, in files of its name: one kernel may stand for it.",
    takes="q, k, cos, sin",
)
EAGER_ATTENTION = Name(
    TRANSFORMERS,
    f"{QWEN2}.eager_attention_forward",
    SAME_LAYERS,
    takes="module, query, key, value, attention_mask, *, dropout, scaling",
)
ATTENTION_FUNCTIONS = Name(
    TRANSFORMERS,
    "transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS",
    "the attention that a config asks for, as the library's own models find it.",
)
GET_INTERFACE = Attribute(
    TRANSFORMERS,
    "transformers.AttentionInterface",
    "get_interface",
    "how they find it, with one to fall back on.",
    plain=True,
)
ATTN_IMPLEMENTATION = Attribute(
    TRANSFORMERS,
    "transformers.PreTrainedConfig",
    "_attn_implementation",
    "what a config says of attention: the one of the whole model goes to its language model.",
)
CREATE_CAUSAL_MASK = Name(
    TRANSFORMERS,
    "transformers.masking_utils.create_causal_mask",
    "a mask as each attention wants it, or none where it needs none.",
    takes="*, config, inputs_embeds, attention_mask, past_key_values, position_ids",
)
MERGE_WITH_CONFIG_DEFAULTS = Name(
    TRANSFORMERS,
    "transformers.utils.generic.merge_with_config_defaults",
    "arguments of `forward` that are not given come from the config.",
)
CAPTURE_OUTPUTS = Name(
    TRANSFORMERS,
    "transformers.utils.output_capturing.capture_outputs",
    "it collects hidden states and attention weights when they are asked for.",
)
CAN_RETURN_TUPLE = Name(
    TRANSFORMERS, "transformers.utils.can_return_tuple", "`return_dict=False` gives a tuple, as of any other model."
)
INITIALIZATION = Name(
    TRANSFORMERS,
    "transformers.initialization",
    "its functions leave loaded tensors alone; those of torch would write over them.",
)
NORMAL = Name(
    TRANSFORMERS, "transformers.initialization.normal_", INITIALIZATION.why, takes="tensor, *, std", plain=True
)
COPY = Name(TRANSFORMERS, "transformers.initialization.copy_", INITIALIZATION.why, takes="tensor, other", plain=True)
ZEROS = Name(TRANSFORMERS, "transformers.initialization.zeros_", INITIALIZATION.why, takes="tensor", plain=True)

INIT_WEIGHTS = Override(
    TRANSFORMERS,
    f"{PRETRAINED_MODEL}._init_weights",
    (f"{QWEN_VL}.modeling.QwenVLPreTrainedModel",),
    "it fills what no file gave.",
)
NO_SPLIT_MODULES = Override(
    TRANSFORMERS,
    f"{PRETRAINED_MODEL}._no_split_modules",
    (f"{QWEN_VL}.modeling.QwenVLPreTrainedModel", f"{QWEN_VL}.language.QwenVLLanguageModel"),
    "layers that stay whole when a model is spread over devices.",
)
SKIP_KEYS = Override(
    TRANSFORMERS,
    f"{PRETRAINED_MODEL}._skip_keys_device_placement",
    (f"{QWEN_VL}.modeling.QwenVLPreTrainedModel",),
    "the cache stays where it is when a model is spread over devices.",
    read_by="transformers.integrations.accelerate",
)
SUPPORTS_GRADIENT_CHECKPOINTING = Override(
    TRANSFORMERS,
    f"{PRETRAINED_MODEL}.supports_gradient_checkpointing",
    (f"{QWEN_VL}.modeling.QwenVLPreTrainedModel",),
    "else recomputing activations is refused.",
)
SUPPORTS_FLASH_ATTN = Override(
    TRANSFORMERS,
    f"{PRETRAINED_MODEL}._supports_flash_attn",
    (f"{QWEN_VL}.modeling.QwenVLPreTrainedModel",),
    "else the attention of this name is refused.",
)
SUPPORTS_SDPA = Override(
    TRANSFORMERS,
    f"{PRETRAINED_MODEL}._supports_sdpa",
    (f"{QWEN_VL}.modeling.QwenVLPreTrainedModel",),
    "else the attention that plans ask for is refused.",
)
SUPPORTS_ATTENTION_BACKEND = Override(
    TRANSFORMERS,
    f"{PRETRAINED_MODEL}._supports_attention_backend",
    (f"{QWEN_VL}.modeling.QwenVLPreTrainedModel",),
    "else other attentions are refused.",
    read_by="transformers.modeling_utils",
)
CAN_RECORD_OUTPUTS = Override(
    TRANSFORMERS,
    f"{PRETRAINED_MODEL}._can_record_outputs",
    (f"{QWEN_VL}.language.QwenVLLanguageModel",),
    "the modules that `capture_outputs` listens to.",
)
TIED_WEIGHTS = Override(
    TRANSFORMERS,
    f"{PRETRAINED_MODEL}._tied_weights_keys",
    (f"{QWEN_VL}.modeling.QwenVLForConditionalGeneration",),
    "which weights are one where the config says that they are shared.",
)

PIL_BACKEND = Name(
    TRANSFORMERS,
    "transformers.image_processing_backends.PilBackend",
    "resizing with PIL, as the model was trained with.",
)
IMAGE_MEAN = Name(TRANSFORMERS, "transformers.image_utils.OPENAI_CLIP_MEAN", "the colours that the tower was made for.")
IMAGE_STD = Name(TRANSFORMERS, "transformers.image_utils.OPENAI_CLIP_STD", "the colours that the tower was made for.")
RESAMPLING = Name(TRANSFORMERS, "transformers.image_utils.PILImageResampling", "ways to resize, as it names them.")
FLAT_LIST_OF_IMAGES = Name(
    TRANSFORMERS,
    "transformers.image_utils.make_flat_list_of_images",
    "how many images a call of the processor has, however they are nested.",
    takes="images",
)
VALIDATE_INPUTS = Override(
    TRANSFORMERS,
    "transformers.ProcessorMixin.validate_inputs",
    (f"{QWEN_VL}.processing.QwenVLProcessor",),
    "texts with too few or too many image tokens are refused.",
    read_by="transformers.ProcessorMixin.__call__",
)
REPLACE_IMAGE_TOKEN = Override(
    TRANSFORMERS,
    "transformers.ProcessorMixin.replace_image_token",
    (f"{QWEN_VL}.processing.QwenVLProcessor",),
    "one image token becomes 256.",
    read_by="transformers.ProcessorMixin",
)
