"""Names of transformers: models without weights, what their files hold, and the tables of what it knows."""

from pathlib import Path
from typing import Any

from vlmtune.compat.borrowed import Attribute, Name
from vlmtune.compat.libraries import TRANSFORMERS

# Building.
REPLACE_WITH_BNB_LINEAR = Name(
    TRANSFORMERS,
    "transformers.integrations.bitsandbytes.replace_with_bnb_linear",
    "a weightless model gets the 4-bit layers that loading would make.",
    takes="model, *, modules_to_not_convert, quantization_config",
)
DTYPE_PLAN = Attribute(
    TRANSFORMERS,
    "transformers.PreTrainedModel",
    "_get_dtype_plan",
    "in fp16, loading keeps parts of some models in fp32, and building from a config does not.",
    read_by="transformers.PreTrainedModel.from_pretrained",
)
ACCELERATE_DISPATCH = Name(
    TRANSFORMERS,
    "transformers.modeling_utils.accelerate_dispatch",
    "of a model with parts on the CPU, accelerate would take each whole part to the card whenever it is used.",
    read_by="transformers.PreTrainedModel.from_pretrained",
)
MODEL_DEVICE = Name(
    TRANSFORMERS,
    "transformers.PreTrainedModel.device",
    "of a model with parts on the CPU it is where the first weight lies, and generate would move positions there.",
    read_by="transformers.generation.GenerationMixin",
    plain=True,
)
IS_LOADED_IN_4BIT = Attribute(
    TRANSFORMERS,
    "transformers.PreTrainedModel",
    "is_loaded_in_4bit",
    "PEFT makes adapters for 4-bit layers where it is true.",
    read_by="peft.tuners.lora.model.LoraModel",
)
CHECKPOINTING_ENABLE = Attribute(
    TRANSFORMERS,
    "transformers.PreTrainedModel",
    "activation_checkpointing_enable",
    "newer versions warn about the old name.",
    older="gradient_checkpointing_enable",
)
MASKS = Name(
    TRANSFORMERS,
    "transformers.masking_utils.ALL_MASK_ATTENTION_FUNCTIONS",
    "every mask of a language model is made by one of these functions; rows of a pack are kept apart there.",
    read_by="transformers.masking_utils.create_causal_mask",
)
CAUSAL_MASK = Name(
    TRANSFORMERS,
    "transformers.masking_utils.causal_mask_function",
    "where it is the whole mask, kernels need none.",
    read_by="transformers.masking_utils.create_causal_mask",
)
SAVE_ON_CPU = Name(
    TRANSFORMERS,
    "transformers.modeling_utils.save_on_cpu",
    "what layers recompute from goes to main memory through it; the simulation lets it pin where there is no GPU.",
    takes="pin_memory, device_type",
    read_by="transformers.PreTrainedModel",
)
GRADIENT_CHECKPOINTING_LAYER = Name(
    TRANSFORMERS,
    "transformers.modeling_layers.GradientCheckpointingLayer",
    "the layers that recompute are of it.",
)
LAYER_CHECKPOINTING = Attribute(
    TRANSFORMERS,
    "transformers.modeling_layers.GradientCheckpointingLayer",
    "gradient_checkpointing",
    "a layer in which it is false keeps its activations.",
    plain=True,
)
CHECKPOINTING_FUNCTION = Attribute(
    TRANSFORMERS,
    "transformers.modeling_layers.GradientCheckpointingLayer",
    "_gradient_checkpointing_func",
    "what runs a layer that recomputes: one whose launches are recorded runs by another.",
)
DEEPSTACK = Attribute(
    TRANSFORMERS,
    "transformers.Qwen3VLTextModel",
    "_deepstack_process",
    "it adds features to what the first layers return, and waits for the card to find their places.",
    read_by="transformers.Qwen3VLTextModel.forward",
)

# Loading.
SET_PARAM_FOR_MODULE = Name(
    TRANSFORMERS,
    "transformers.core_model_loading.set_param_for_module",
    "it gives a loaded and quantised weight to its module: one that is streamed leaves the card then.",
    takes="model, target_name, param_value, loading_info, hf_quantizer",
    read_by="transformers.core_model_loading.convert_and_load_state_dict_in_model",
)
CACHING_ALLOCATOR_WARMUP = Name(
    TRANSFORMERS,
    "transformers.modeling_utils.caching_allocator_warmup",
    "before loading it takes one block as large as the model, which a card need not hold when layers are streamed.",
    takes="model, expanded_device_map, hf_quantizer",
    read_by="transformers.PreTrainedModel",
)

# Files.
GET_MODEL_CONVERSION_MAPPING = Name(
    TRANSFORMERS,
    "transformers.conversion_mapping.get_model_conversion_mapping",
    "how names in files become names in memory.",
    takes="model",
)
RENAME_SOURCE_KEY = Name(
    TRANSFORMERS,
    "transformers.core_model_loading.rename_source_key",
    "one name in a file → its name in memory, by the loader's own rules.",
    takes="source_key, weight_renamings, weight_converters, base_model_prefix, meta_state_dict",
)
REGISTER_CONVERSION_MAPPING = Name(
    TRANSFORMERS,
    "transformers.conversion_mapping.register_checkpoint_conversion_mapping",
    "Qwen-VL's published files load under its names here.",
    takes="model_type_or_class_name, mapping, *, overwrite",
)
WEIGHT_RENAMING = Name(
    TRANSFORMERS,
    "transformers.core_model_loading.WeightRenaming",
    "a rule by which a tensor gets another name.",
    takes="source_patterns, target_patterns",
)
WEIGHT_CONVERTER = Name(
    TRANSFORMERS,
    "transformers.core_model_loading.WeightConverter",
    "a rule by which a tensor is taken apart.",
    takes="source_patterns, target_patterns, *, operations",
)
CONVERTER_OPERATIONS = Attribute(
    TRANSFORMERS,
    "transformers.core_model_loading.WeightConverter",
    "operations",
    "what such a rule does, by which the one for packed weights is known; other rules lack it.",
)
BNB_DESERIALIZE = Name(
    TRANSFORMERS,
    "transformers.integrations.bitsandbytes.Bnb4bitDeserialize",
    "it puts packed weights together while loading, and saving an unpacked model would fail to take them apart.",
)
USED_CONVERSIONS = Attribute(
    TRANSFORMERS,
    "transformers.core_model_loading.convert_and_load_state_dict_in_model",
    "_weight_conversions",
    "the rules that a model was loaded by, which saving reverts.",
    read_by="transformers.core_model_loading.revert_weight_conversion",
)
CHUNK = Name(
    TRANSFORMERS, "transformers.core_model_loading.Chunk", "it takes a tensor apart into equal pieces.", takes="*, dim"
)
OPTIONAL_TENSORS = Attribute(
    TRANSFORMERS,
    "transformers.PreTrainedModel",
    "_keys_to_ignore_on_load_missing",
    "the tensors that a model says it can do without.",
    read_by="transformers.PreTrainedModel",
)
CACHED_FILES = Name(
    TRANSFORMERS,
    "transformers.utils.hub.cached_files",
    "files of a folder, the cache or the hub; that one may be missing is said by a private argument.",
    takes="path_or_repo_id, filenames, *, _raise_exceptions_for_missing_entries",
)

# What it knows.
MODEL_NAMES = Name(
    TRANSFORMERS,
    "transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "the model types with a vision-language model; the public mapping imports their code.",
)
PROCESSOR_NAMES = Name(
    TRANSFORMERS,
    "transformers.models.auto.processing_auto.PROCESSOR_MAPPING_NAMES",
    "model type → processor class, without the files that AutoProcessor reads.",
)
IMAGE_PROCESSOR_NAMES = Name(
    TRANSFORMERS,
    "transformers.models.auto.image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES",
    "model type → image processor class, without files.",
)
VIDEO_PROCESSOR_NAMES = Name(
    TRANSFORMERS,
    "transformers.models.auto.video_processing_auto.VIDEO_PROCESSOR_MAPPING_NAMES",
    "model type → video processor class, without files.",
)
FEATURE_EXTRACTOR_NAMES = Name(
    TRANSFORMERS,
    "transformers.models.auto.feature_extraction_auto.FEATURE_EXTRACTOR_MAPPING_NAMES",
    "model type → feature extractor class, without files.",
)
PROCESSOR_PARTS = Attribute(
    TRANSFORMERS,
    "transformers.ProcessorMixin",
    "get_attributes",
    "which arguments of a processor class are parts of it.",
)
IMAGE_SEQ_LENGTH = Attribute(
    TRANSFORMERS,
    "transformers.PaliGemmaProcessor",
    "image_seq_length",
    "this processor looks for its number of image tokens on the image processor.",
    plain=True,
)


def optional_file(folder_or_id: str, name: str, **where: Any) -> Path | None:
    """Return the file of a folder or hub model, or None when it has no such file."""
    found = CACHED_FILES(folder_or_id, [name], _raise_exceptions_for_missing_entries=False, **where)
    return Path(found[0]) if found else None
