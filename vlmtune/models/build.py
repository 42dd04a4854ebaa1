"""RunPlan → model ready to train: load → quantise → freeze → adapt. No other file loads models or attaches adapters."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
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
from vlmtune.models.packed import quantise_nothing
from vlmtune.models.parts import SEES, only, parts_in_training, rest_frozen_parts
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
    parts = parts_in_training(family, cache_features=plan.cache_features)
    if weights == "checkpoint":
        model = load_base(plan, parts=parts)
    else:
        model = streaming.weightless(weightless_base(plan, parts), plan, family)
    model = adapt(model.requires_grad_(False), plan, family)
    rest_frozen_parts(base_of(model), family)
    for lever in levers.LEVERS:
        lever.apply(base_of(model), plan, family)
    return model


def build_tower(plan: RunPlan, *, weights: Literal["checkpoint", "none"] = "checkpoint") -> PreTrainedModel:
    """Return vision tower and projector on the plan's device, as the whole model has them, and nothing else of it."""
    plan = replace(plan, offload_embeddings=False, streamed_layers=0)  # of parts that are not there
    model = load_base(plan, parts=SEES) if weights == "checkpoint" else weightless_base(plan, SEES)
    return model.requires_grad_(False).eval()


def build_tuned(plan: RunPlan, adapter_dir: str, *, quantized: bool = True) -> PeftModel:
    """Return base + saved adapter for inference; `quantized=False` loads the base in 16 bits (or fp32 on a CPU).

    Raises:
        VlmtuneError: the adapter's tensors are not those that the model expects.
    """
    torch.manual_seed(plan.seed)
    parts = parts_in_training(family_of(plan), cache_features=plan.cache_features)
    model = load_base(plan, quantized=quantized, parts=parts)
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


def load_base(plan: RunPlan, *, quantized: bool = True, parts: Collection[str] | None = None) -> PreTrainedModel:
    """Return the base model on the plan's device, quantised tensor by tensor while loading when the plan says so.

    Args:
        parts: those that are loaded, all where it is None; no byte of the others is read.

    Raises:
        VlmtuneError: the files are damaged or of another model, or memory does not hold what they hold.
    """
    folder = checkpoint_folder(plan.model, plan.revision)
    stored = check_checkpoint(plan)
    try:
        with (
            only(parts, AutoConfig.from_pretrained(folder), family_of(plan)),
            embeddings.as_mapped(),
            streaming.while_loading(plan, family_of(plan), quantized),
        ):
            model, report = AutoModelForImageTextToText.from_pretrained(
                folder,
                dtype=DTYPES[plan.base_dtype],
                quantization_config=_quantization_config(plan) if quantized else None,
                device_map=embeddings.device_map(plan, partial(_weightless, parts=parts)),
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


def weightless_base(plan: RunPlan, parts: Collection[str] | None = None) -> PreTrainedModel:
    """Return the base model as `load_base` would, on the meta device: shapes and number formats, no storage."""
    model = _weightless(plan, parts)
    if quantization := _quantization_config(plan):
        with torch.device("meta"), _default_dtype(DTYPES[plan.base_dtype]):
            borrowed.REPLACE_WITH_BNB_LINEAR(
                model, modules_to_not_convert=list(plan.unquantized), quantization_config=quantization
            )
            for module in model.modules():
                if isinstance(module, Linear4bit):
                    quantise_nothing(module, quantization)
        borrowed.IS_LOADED_IN_4BIT.write(model, True)
    _forbid_packing(model)
    embeddings.keep_in_main_memory(model, plan)
    return model


def _weightless(plan: RunPlan, parts: Collection[str] | None = None) -> PreTrainedModel:
    """Return the unquantised base model, or some parts of it, on the meta device, from config.json alone."""
    folder = checkpoint_folder(plan.model, plan.revision, weights=False)
    try:
        config = AutoConfig.from_pretrained(folder)
        made = only(parts, config, family_of(plan))
        with made, torch.device("meta"), _default_dtype(DTYPES[plan.base_dtype]):
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
