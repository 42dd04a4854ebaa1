"""RunPlan → model ready to train: load → quantise → freeze → adapt. No other file loads models or attaches adapters."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from bitsandbytes.nn import Linear4bit
from huggingface_hub.errors import StrictDataclassError
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel

import vlmtune.models.qwen_vl  # noqa: F401  transformers knows the model from then on
from vlmtune import levers
from vlmtune.compat import bitsandbytes as bnb
from vlmtune.compat import transformers as borrowed
from vlmtune.errors import VlmtuneError
from vlmtune.families import FAMILIES
from vlmtune.families.base import Family
from vlmtune.families.generic import NAME as GENERIC
from vlmtune.families.generic import generic_family
from vlmtune.hub.download import checkpoint_folder
from vlmtune.hub.shards import StoredTensor, stored_tensors
from vlmtune.hub.source import open_model
from vlmtune.levers.method import adapt
from vlmtune.models import embeddings, streaming
from vlmtune.models.verify import refuse_other_numbers, refuse_other_tensors
from vlmtune.plan.types import RunPlan

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CONFIG_ERRORS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError)
CONFIG_ERRORS += (StrictDataclassError, TypeError, ValueError)
"""What building a model from a damaged config.json raises: anything, wherever a number is used first."""


def family_of(plan: RunPlan) -> Family:
    """Return the plan's family."""
    if plan.family == GENERIC:
        return generic_family(open_model(plan.model, plan.revision, Path("/")).config, plan.model_name)
    return next(family for family in FAMILIES if family.name == plan.family)


def build_model(plan: RunPlan, *, weights: Literal["checkpoint", "none"] = "checkpoint") -> PreTrainedModel | PeftModel:
    """Return the model on the plan's device with what is to be trained, and nothing else, requiring gradients.

    `weights="none"` builds the same model with tensors that have no storage, from config.json alone.

    Never `prepare_model_for_kbit_training`: it copies embeddings, head and norms to fp32 (0.5 to 2.3 GiB).
    """
    torch.manual_seed(plan.seed)
    family = family_of(plan)
    model = load_base(plan) if weights == "checkpoint" else streaming.weightless(weightless_base(plan), plan, family)
    model = adapt(model.requires_grad_(False), plan, family)
    _rest_frozen_parts(base_of(model), family)
    for lever in levers.LEVERS:
        lever.apply(base_of(model), plan, family)
    return model


def build_tuned(plan: RunPlan, adapter_dir: str, *, quantized: bool = True) -> PeftModel:
    """Return base + saved adapter for inference; `quantized=False` loads the base in 16 bits (or fp32 on a CPU).

    Raises:
        VlmtuneError: the adapter's tensors are not those that the model expects.
    """
    torch.manual_seed(plan.seed)
    model = load_base(plan, quantized=quantized)
    expected = {
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and _is_target(plan, name)
    }
    tuned = PeftModel.from_pretrained(model, adapter_dir)
    adapted = {
        name.removeprefix("base_model.model.") for name, module in tuned.named_modules() if hasattr(module, "lora_A")
    }
    if adapted != expected:
        raise VlmtuneError(
            f"the adapter in {adapter_dir} does not fit the model: {len(expected ^ adapted)} modules differ",
            "use the model revision and library versions in versions.json",
        )
    return tuned.eval()


def load_base(plan: RunPlan, *, quantized: bool = True) -> PreTrainedModel:
    """Return the base model on the plan's device, quantised tensor by tensor while loading when the plan says so.

    Raises:
        VlmtuneError: the files are damaged or of another model, or memory does not hold what they hold.
    """
    folder = checkpoint_folder(plan.model, plan.revision)
    stored = check_checkpoint(plan)
    try:
        with embeddings.as_mapped(), streaming.while_loading(plan, family_of(plan), quantized):
            model, report = AutoModelForImageTextToText.from_pretrained(
                folder,
                dtype=DTYPES[plan.base_dtype],
                quantization_config=_quantization_config(plan) if quantized else None,
                device_map=embeddings.device_map(plan, _weightless),
                attn_implementation=plan.attention,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below
            )
    except (OSError, SafetensorError) as error:
        raise VlmtuneError(
            f"the model {folder} cannot be loaded: {str(error).splitlines()[0]}",
            "the folder needs config.json and all *.safetensors files",
        ) from None
    misshapen = [key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]]
    absent = sorted({*report["missing_keys"], *misshapen, *_misshapen_4bit(model)})
    if absent:
        raise VlmtuneError(
            f"the files of {folder} lack {len(absent)} tensors of the model, or have them in another shape, "
            f"such as {absent[0]}",
            "download the model again; training would start from random numbers there",
        )
    refuse_other_numbers(model, stored, folder)
    _name_image_token(model, plan)
    _forbid_packing(model)
    embeddings.keep_in_main_memory(model, plan)
    streaming.start(model)
    return model


def check_checkpoint(plan: RunPlan) -> dict[str, StoredTensor]:
    """Return the tensors of the model's files; no weight is read.

    Raises:
        VlmtuneError: no safetensors, a file missing or damaged, or tensors that config.json does not describe.
    """
    folder = checkpoint_folder(plan.model, plan.revision)
    stored = stored_tensors(folder)
    refuse_other_tensors(_weightless(plan), stored, folder)
    return stored


def _name_image_token(model: PreTrainedModel, plan: RunPlan) -> None:
    """Set the id of the image token where config.json lacks it, as InstructBLIP's did until the end of 2024."""
    if not family_of(plan).qformer or model.config.image_token_index is not None:
        return
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_folder(plan.model, plan.revision, weights=False))
    # The processor adds the token to a tokenizer that does not have it.
    model.config.image_token_index = tokenizer.get_vocab().get("<image>", len(tokenizer))


def _misshapen_4bit(model: nn.Module) -> list[str]:
    """Return the 4-bit weights whose file had another shape: the loader compares shapes of plain weights only."""
    states = (
        (name, module, bnb.state_of(module.weight))
        for name, module in model.named_modules()
        if isinstance(module, Linear4bit)
    )
    return [
        f"{name}.weight"
        for name, module, state in states
        if state is not None and tuple(state.shape) != (module.out_features, module.in_features)
    ]


def weightless_base(plan: RunPlan) -> PreTrainedModel:
    """Return the base model as `load_base` would, on the meta device: shapes and number formats, no storage."""
    model = _weightless(plan)
    if quantization := _quantization_config(plan):
        with torch.device("meta"), _default_dtype(DTYPES[plan.base_dtype]):
            borrowed.REPLACE_WITH_BNB_LINEAR(
                model, modules_to_not_convert=list(plan.unquantized), quantization_config=quantization
            )
            for module in model.modules():
                if isinstance(module, Linear4bit):
                    _quantise_nothing(module, quantization)
        borrowed.IS_LOADED_IN_4BIT.write(model, True)
    _forbid_packing(model)
    embeddings.keep_in_main_memory(model, plan)
    return model


def _weightless(plan: RunPlan) -> PreTrainedModel:
    """Return the unquantised base model on the meta device, from config.json alone."""
    folder = checkpoint_folder(plan.model, plan.revision, weights=False)
    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"), _default_dtype(DTYPES[plan.base_dtype]):
            model = AutoModelForImageTextToText.from_config(
                config, dtype=DTYPES[plan.base_dtype], attn_implementation=plan.attention
            )
    except CONFIG_ERRORS as error:
        raise VlmtuneError(
            f"{folder / 'config.json'} describes no model: {type(error).__name__}: {_last_line(error)}",
            "download the file again",
        ) from None
    exceptions = borrowed.DTYPE_PLAN.read(model)(DTYPES[plan.base_dtype])  # in fp16, some models keep parts in fp32
    for name, parameter in model.named_parameters() if exceptions else ():
        for part, dtype in exceptions.items():
            if part in name:
                parameter.data = parameter.data.to(dtype)
    model.tie_weights()
    _name_image_token(model, plan)
    return model


def _last_line(error: Exception) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "")


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _quantise_nothing(module: Linear4bit, quantization: BitsAndBytesConfig) -> None:
    """Give a weightless layer the packed weight and the constants that quantising would have made."""

    def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    numbers = module.out_features * module.in_features
    blocks = -(-numbers // 64)
    nested = quantization.bnb_4bit_use_double_quant
    constants = bnb.QUANT_STATE(
        absmax=empty(-(-blocks // 256), dtype=torch.float32),
        code=empty(256, dtype=torch.float32),
        blocksize=256,
        dtype=torch.float32,
    )
    state = bnb.QUANT_STATE(
        absmax=empty(blocks, dtype=torch.uint8 if nested else torch.float32),
        shape=torch.Size((module.out_features, module.in_features)),
        dtype=quantization.bnb_4bit_compute_dtype,
        blocksize=64,
        code=empty(16, dtype=torch.float32),
        quant_type=quantization.bnb_4bit_quant_type,
        offset=empty(dtype=torch.float32) if nested else None,
        state2=constants if nested else None,
    )
    module.weight = bnb.PARAMS_4BIT(
        empty((numbers + 1) // 2, 1, dtype=torch.uint8),
        requires_grad=False,
        quant_state=state,
        blocksize=64,
        compress_statistics=nested,
        quant_type=quantization.bnb_4bit_quant_type,
        bnb_quantized=True,
    )
    bnb.LAYER_STATE.write(module, state)
    bnb.COMPUTE_TYPE_IS_SET.write(module, True)


def base_of(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _quantization_config(plan: RunPlan) -> BitsAndBytesConfig | None:
    if plan.quant_type is None:
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=plan.quant_type,
        bnb_4bit_use_double_quant=plan.double_quant,
        bnb_4bit_compute_dtype=DTYPES[plan.base_dtype],
        llm_int8_skip_modules=list(plan.unquantized),
        llm_int8_enable_fp32_cpu_offload=embeddings.is_split(plan),  # else a part on the CPU is refused
    )


def _is_target(plan: RunPlan, module_path: str) -> bool:
    import re

    return re.fullmatch(plan.lora_targets, module_path) is not None


def _forbid_packing(model: nn.Module) -> None:
    """Keep 4-bit weights in one format, so that evaluation and training compute the same.

    In eval mode bitsandbytes packs them for a coarser CPU kernel that has no gradient; training steps that follow an
    evaluation would silently learn from wrong gradients.
    """
    for module in model.modules():
        if bnb.AVX512_FOR_CPU.read_or_none(module) is not None:
            bnb.AVX512_FOR_CPU.write(module, False)


def _rest_frozen_parts(model: PreTrainedModel, family: Family) -> None:
    """Keep towers and projectors in which nothing learns in eval mode, whatever mode the model is set to.

    Their dropout (InstructBLIP's Q-Former has it) would only make other features of the same image each time.
    """
    parts = (family.vision, *family.projector, *family.other)
    for name, module in model.named_modules():
        if name in parts and not any(parameter.requires_grad for parameter in module.parameters()):
            module.eval()
            module.train = lambda mode=True, module=module: module
