"""RunPlan → model ready to train: load → quantise → freeze → adapt. No other file loads models or attaches adapters."""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, PreTrainedModel

import vlmtune.models.qwen_vl  # noqa: F401  transformers knows the model from then on
from vlmtune import levers
from vlmtune.compat import transformers as borrowed
from vlmtune.errors import VlmtuneError
from vlmtune.families import FAMILIES
from vlmtune.families.base import Family
from vlmtune.families.facts import CONFIG_ERRORS, last_line
from vlmtune.families.generic import NAME as GENERIC
from vlmtune.families.generic import generic_family
from vlmtune.hub.download import checkpoint_folder, tensor_names
from vlmtune.hub.shards import StoredTensor, stored_tensors
from vlmtune.hub.source import open_model
from vlmtune.levers.method import adapt, lora_config
from vlmtune.models import embeddings
from vlmtune.models.config import attention_asked_for, read_config
from vlmtune.models.head import device_map, is_split, pack_head
from vlmtune.models.kept import Tell, is_kept, load_kept, say
from vlmtune.models.layers import placed
from vlmtune.models.lora.lean import make_lean
from vlmtune.models.lora.start import load_start
from vlmtune.models.packed import (
    as_unpacked,
    default_dtype,
    forbid_packing,
    give_format,
    misshapen,
    pack_nothing,
    packed_weights,
    quantization_of,
    unpack,
    unpacked_layers,
)
from vlmtune.models.parts import SEES, cast_features, only, parts_in_training, rest_frozen_parts
from vlmtune.models.speed.faster import make_faster
from vlmtune.models.verify import refuse_other_base, refuse_other_numbers, refuse_other_tensors
from vlmtune.plan.types import RunPlan

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def family_of(plan: RunPlan) -> Family:
    """Return the plan's family."""
    if plan.family == GENERIC:
        return generic_family(open_model(plan.model, plan.revision, Path("/")).config, plan.model_name)
    return next(family for family in FAMILIES if family.name == plan.family)


def build_model(
    plan: RunPlan, *, weights: Literal["checkpoint", "none"] = "checkpoint", tell: Tell = say
) -> PreTrainedModel | PeftModel:
    """Return the model on the plan's device with what is to be trained, and nothing else, requiring gradients.

    `weights="none"` builds the same model with tensors that have no storage, from config.json alone.

    Never `prepare_model_for_kbit_training`: it copies embeddings, head and norms to fp32 (0.5 to 2.3 GiB).
    """
    torch.manual_seed(plan.seed)
    family = family_of(plan)
    parts = _parts_in_training(plan)
    if weights == "checkpoint":
        model = load_base(plan, parts=parts, tell=tell)
    else:
        model = placed.weightless(weightless_base(plan, parts), plan, family)
    model = adapt(model.requires_grad_(False), plan, family)
    if plan.adapter and weights == "checkpoint":
        load_start(model, plan)
    rest_frozen_parts(base_of(model), family)
    if plan.lean_lora:
        make_lean(base_of(model))
    if plan.autocast_dtype:
        cast_features(base_of(model), family)
    for lever in levers.LEVERS:
        lever.apply(base_of(model), plan, family)
    make_faster(base_of(model), plan, family)
    return model


def build_tower(plan: RunPlan, *, weights: Literal["checkpoint", "none"] = "checkpoint") -> PreTrainedModel:
    """Return vision tower and projector on the plan's device, as the whole model has them, and nothing else of it."""
    off = dict.fromkeys(("offload_embeddings", "streamed_layers", "head_8bit", "sharded", "cuda_graphs"), False)
    plan = replace(plan, **off, cache_quantized=False)  # of parts that are not there; what it makes is kept
    model = load_base(plan, parts=SEES) if weights == "checkpoint" else weightless_base(plan, SEES)
    make_faster(model, plan, family_of(plan))
    return model.requires_grad_(False).eval()


def build_tuned(plan: RunPlan, adapter_dir: str, *, quantized: bool = True) -> PeftModel:
    """Return base + saved adapter for inference; `quantized=False` loads the base in 16 bits (or fp32 on a CPU).

    Raises:
        VlmtuneError: the adapter's tensors are not those that the model expects.
    """
    torch.manual_seed(plan.seed)
    model = load_base(plan, quantized=quantized, parts=_parts_in_training(plan))
    linears = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    expected = {name for name in linears if re.fullmatch(plan.lora_targets, name)}
    refuse_other_base(model, Path(adapter_dir), plan.lora_rank)
    # By the plan: patterns in a stranger's adapter_config.json may take for ever to be matched.
    tuned = PeftModel.from_pretrained(model, adapter_dir, config=lora_config(plan))
    adapted = {name for name, module in base_of(tuned).named_modules() if hasattr(module, "lora_A")}
    if adapted != expected:
        raise VlmtuneError(
            f"the adapter in {adapter_dir} does not fit the model: {len(expected ^ adapted)} modules differ",
            "use the model revision and library versions in versions.json",
        )
    make_faster(base_of(tuned), plan, family_of(plan))
    return tuned.eval()


def load_base(
    plan: RunPlan, *, quantized: bool = True, parts: Collection[str] | None = None, tell: Tell = say
) -> PreTrainedModel:
    """Return the base model on the plan's device, quantised tensor by tensor while loading when the plan says so.

    Args:
        parts: those that are loaded, all where it is None; no byte of the others is read.
        tell: told of a base that is kept on disk.

    Raises:
        VlmtuneError: the files are damaged or of another model, or memory does not hold what they hold.
    """
    if quantized and plan.cache_quantized:
        model = load_kept(plan, parts, partial(_load, parts=parts), tell)
    else:
        model = _load(plan, parts, quantized)
    if quantized:
        pack_head(model, plan, family_of(plan))
    embeddings.keep_in_main_memory(model, plan)
    placed.start(model)
    return model


def base_is_kept(plan: RunPlan) -> bool:
    """Return whether training would load the base from the cache of quantised ones."""
    return plan.cache_quantized and is_kept(plan, _parts_in_training(plan))


def _parts_in_training(plan: RunPlan) -> Collection[str] | None:
    return parts_in_training(family_of(plan), cache_features=plan.cache_features)


def _load(plan: RunPlan, parts: Collection[str] | None, quantized: bool = True) -> PreTrainedModel:
    files = _checked_files(plan, folder := checkpoint_folder(plan.model, plan.revision), parts)
    model = _from_files(plan, folder, files, quantized)
    if plan.prequantised:
        give_format(model, files.described, DTYPES[plan.base_dtype])
    refuse_other_numbers(model, files.stored, folder)
    if plan.prequantised and not quantized:
        unpack(model, DTYPES[plan.base_dtype])
    forbid_packing(model)
    return model


@dataclass(frozen=True)
class _Files:
    """What the files of a model hold, and the model that they should be of."""

    stored: dict[str, StoredTensor]
    """Of a packed weight, what the model has of it."""
    parts: Collection[str] | None
    described: PreTrainedModel
    """These parts, without storage and not quantised."""
    quantization: BitsAndBytesConfig | None


def check_checkpoint(plan: RunPlan) -> dict[str, StoredTensor]:
    """Return the tensors of the model's files; no weight is read.

    Raises:
        VlmtuneError: no safetensors, a file missing or damaged, or tensors that config.json does not describe.
    """
    _checked_files(plan, folder := checkpoint_folder(plan.model, plan.revision))
    return stored_tensors(folder)


def _checked_files(plan: RunPlan, folder: Path, parts: Collection[str] | None = None) -> _Files:
    described, stored = _weightless(plan, parts), stored_tensors(folder)
    packed = packed_weights(stored)
    if packed and not plan.prequantised:
        raise VlmtuneError(
            f"the files of {folder} are in 4 bits, of which its config.json says nothing",
            "download config.json again: it must be the one that was saved with them",
        )
    quantization, stored = _quantization_config(plan, packed), as_unpacked(stored, folder)
    refuse_other_tensors(described, stored, folder)
    return _Files(stored, parts, described, quantization)


def _from_files(plan: RunPlan, folder: Path, files: _Files, quantized: bool) -> PreTrainedModel:
    """Return what transformers loads, nothing of it made up."""
    config = read_config(plan, folder, family_of(plan))
    how: dict[str, Any] = {"quantization_config": files.quantization if quantized else None}
    if plan.prequantised:
        config.quantization_config = files.quantization.to_dict()
        how = {}
    try:
        with (
            only(files.parts, config, family_of(plan)),
            embeddings.as_mapped(),
            placed.while_loading(plan, family_of(plan), quantized),
        ):
            model, report = AutoModelForImageTextToText.from_pretrained(
                folder,
                config=config,
                **how,
                dtype=DTYPES[plan.base_dtype],
                device_map=device_map(plan, family_of(plan), files.described),
                attn_implementation=attention_asked_for(plan),
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below
            )
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise VlmtuneError(
            f"the model {folder} cannot be loaded: {str(error).splitlines()[0]}",
            "the folder needs config.json and all *.safetensors files",
        ) from None
    mismatched = [key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]]
    absent = sorted({*report["missing_keys"], *mismatched, *misshapen(model)})
    if absent:
        raise VlmtuneError(
            f"the files of {folder} lack {len(absent)} tensors of the model, or have them in another shape, "
            f"such as {absent[0]}",
            "download the model again; training would start from random numbers there",
        )
    return model


def weightless_base(plan: RunPlan, parts: Collection[str] | None = None) -> PreTrainedModel:
    """Return the base model as `load_base` would, on the meta device: shapes and number formats, no storage."""
    model = _weightless(plan, parts)
    packed = packed_weights(tensor_names(plan.model, plan.revision)) if plan.prequantised else ()
    if quantization := _quantization_config(plan, packed):
        pack_nothing(model, quantization)
    pack_head(model, plan, family_of(plan))
    forbid_packing(model)
    embeddings.keep_in_main_memory(model, plan)
    return model


def _quantization_config(plan: RunPlan, packed: Collection[str] = ()) -> BitsAndBytesConfig | None:
    """Return how the base is packed, or was when its files were made, which have these `packed` weights."""
    if plan.quant_type is None:
        return None
    unpacked = list(plan.unquantized)
    if plan.prequantised:
        unpacked = unpacked_layers(_weightless(plan), packed, plan.unquantized, plan.model)
    quantization = quantization_of(plan.quant_type, plan.double_quant, unpacked, DTYPES[plan.base_dtype])
    quantization.llm_int8_enable_fp32_cpu_offload = is_split(plan)  # else a part on the CPU is refused
    return quantization


def _weightless(plan: RunPlan, parts: Collection[str] | None = None) -> PreTrainedModel:
    """Return the unquantised base model, or some parts of it, on the meta device, from config.json alone."""
    folder = checkpoint_folder(plan.model, plan.revision, weights=False)
    try:
        config = read_config(plan, folder, family_of(plan))
        made = only(parts, config, family_of(plan))
        with made, torch.device("meta"), default_dtype(DTYPES[plan.base_dtype]):
            model = AutoModelForImageTextToText.from_config(
                config,
                dtype=DTYPES[plan.base_dtype],
                attn_implementation=attention_asked_for(plan),
                trust_remote_code=False,
            )
    except (*CONFIG_ERRORS, StrictDataclassError) as error:
        raise VlmtuneError(
            f"{folder / 'config.json'} describes no model: {type(error).__name__}: {last_line(error)}",
            "download the file again",
        ) from None
    exceptions = borrowed.DTYPE_PLAN.read(model)(DTYPES[plan.base_dtype])  # in fp16, some models keep parts in fp32
    for name, parameter in model.named_parameters() if exceptions else ():
        for part, dtype in exceptions.items():
            if part in name:
                parameter.data = parameter.data.to(dtype)
    model.tie_weights()
    return model


def base_of(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model
