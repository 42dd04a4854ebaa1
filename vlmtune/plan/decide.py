"""TrainingConfig + model config + device → RunPlan: every "auto" decided once, with its reason. No torch here.

Estimate and train take a RunPlan and nothing else: neither sees YAML, a preset or a flag.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vlmtune.config.schema import TrainingConfig
from vlmtune.errors import VlmtuneError
from vlmtune.families import find_family
from vlmtune.families.base import Family
from vlmtune.families.text_model import text_model
from vlmtune.hub.source import ModelSource
from vlmtune.plan.types import Choice, Device, RunPlan

LOSS_CHUNK_BYTES = 256 * 2**20
BYTES_PER_LOGIT = 10  # between the peak of the forward pass (fp32 copy, log-softmax: 8) and of the backward pass (12)


def make_plan(config: TrainingConfig, source: ModelSource, device: Device, data_sha256: str = "") -> RunPlan:
    """Decide every open value of `config` for this model, device and data file.

    Raises:
        VlmtuneError: the model belongs to no family, or a wish cannot be granted on this device.
    """
    family = find_family(source.config, config.model.name)
    choices: list[Choice] = []
    training = config.training
    return RunPlan(
        experiment_name=config.experiment_name,
        model_name=Path(config.model.name).name if Path(config.model.name).is_absolute() else config.model.name,
        model_revision=config.model.revision,
        model=source.location,
        revision=source.revision,
        data_sha256=data_sha256,
        family=_checked_family(family, config, choices).name,
        device=device.kind,
        method=training.method,
        attention=_attention(source, family, choices),
        **_number_formats(config, device, choices),
        **_quantization(config, family, source, choices),
        **_trainable(config, family),
        **_data(config, family, source, device, choices),
        batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        num_epochs=training.num_epochs,
        max_steps=training.max_steps,
        learning_rate=training.learning_rate,
        warmup_ratio=training.warmup_ratio,
        lr_scheduler_type=training.lr_scheduler_type,
        optimizer=_optimizer(config, device, choices),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        gradient_checkpointing=config.hardware.gradient_checkpointing,
        checkpointed_layers=_checkpointed_layers(config, source),
        loss_chunk_tokens=_loss_chunk_tokens(source),
        seed=training.seed,
        logging_steps=training.logging_steps,
        eval_steps=training.eval_steps,
        save_steps=training.save_steps,
        save_total_limit=training.save_total_limit,
        report_to=_installed(training.report_to),
        choices=tuple(choices),
    )


def _checked_family(family: Family, config: TrainingConfig, choices: list[Choice]) -> Family:
    wanted = config.model.type
    if wanted and wanted != family.name and wanted not in family.model_types:
        reason = f"the model's config.json says so; model.type: {wanted} is not used"
        choices.append(Choice("model.type", family.name, reason))
    return family


def _attention(source: ModelSource, family: Family, choices: list[Choice]) -> str:
    if family.attention != "sdpa":
        choices.append(Choice("attention", family.attention, "the model has no other: slower, and more memory"))
        return family.attention
    if not (source.config.get("text_config") or {}).get("attn_logit_softcapping", _default_softcap(source)):
        return "sdpa"
    choices.append(Choice("attention", "eager", "the model caps its attention scores: slower, and more memory"))
    return "eager"


def _default_softcap(source: ModelSource) -> float | None:
    """Gemma 2 caps its scores unless its config.json says otherwise."""
    return 50.0 if (source.config.get("text_config") or {}).get("model_type") == "gemma2" else None


def _number_formats(config: TrainingConfig, device: Device, choices: list[Choice]) -> dict[str, Any]:
    """Which formats weights, computation and adapters have.

    Adapters only: the frozen base computes in its own format, so no autocast and no copies of weights.
    Full tuning: fp32 weights, because steps of 1e-5 vanish in bf16, computed under autocast.
    """
    wish = config.hardware.mixed_precision
    if wish == "auto":
        dtype = ("bf16" if device.bf16 else "fp16") if device.kind == "cuda" else "fp32"
        reason = {
            "bf16": f"{device.name} computes bf16",
            "fp16": f"{device.name} has no bf16: fp16 with loss scaling",
            "fp32": "training runs on the CPU",
        }[dtype]
        choices.append(Choice("hardware.mixed_precision", dtype, reason))
    else:
        dtype = {"bf16": "bf16", "fp16": "fp16", "no": "fp32"}[wish]
    if dtype == "fp16" and device.kind == "cpu":
        raise VlmtuneError(
            "hardware.mixed_precision: fp16 needs a GPU, and none was found", "use auto, which takes fp32 on a CPU"
        )
    if dtype == "bf16" and device.kind == "cuda" and not device.bf16:
        raise VlmtuneError(
            f"hardware.mixed_precision: bf16 is not computed by {device.name}", "use auto, which takes fp16 here"
        )
    full = config.training.method == "full"
    return {
        "base_dtype": "fp32" if full else dtype,
        "autocast_dtype": dtype if full and dtype != "fp32" else None,
        "adapter_dtype": None if full else "fp32",
        "loss_scaling": dtype == "fp16",
    }


def _quantization(config: TrainingConfig, family: Family, source: ModelSource, choices: list[Choice]) -> dict[str, Any]:
    """Full module paths to leave alone: any list replaces the library's own, which protects the head."""
    quantization = config.training.quantization
    if config.training.method != "qlora":
        return {"quant_type": None, "double_quant": False, "unquantized": ()}
    tower = () if quantization.quantize_vision_tower else (family.vision, *family.projector)
    packs_head = quantization.quantize_head
    if packs_head and text_model(source.config).shares_embedding:
        packs_head = False
        reason = "the head shares the embedding's weights, which are looked up by row and stay as they are"
        choices.append(Choice("training.quantization.quantize_head", "false", reason))
    return {
        "quant_type": quantization.bnb_4bit_quant_type,
        "double_quant": quantization.bnb_4bit_use_double_quant,
        "unquantized": (*(() if packs_head else (family.head,)), *tower, *family.unpacked),
    }


def _checkpointed_layers(config: TrainingConfig, source: ModelSource) -> int | None:
    wish = config.hardware.checkpointed_layers
    if wish is None:
        return None
    num_layers = text_model(source.config).num_layers
    if wish > num_layers:
        raise VlmtuneError(
            f"hardware.checkpointed_layers: {wish} are wanted, but the language model of {config.model.name} "
            f"has {num_layers} layers",
            "leave it out to recompute all of them",
        )
    return wish if wish < num_layers else None


def _trainable(config: TrainingConfig, family: Family) -> dict[str, Any]:
    training = config.training
    full = training.method == "full"
    parts = ["text", "head"]
    parts += ["vision"] * (not training.freeze_vision_tower) + ["projector"] * (not training.freeze_projector)
    return {
        "lora_targets": None if full else lora_targets(family, training.lora.vision_tower),
        "lora_rank": training.lora.rank,
        "lora_alpha": training.lora.alpha,
        "lora_dropout": training.lora.dropout,
        "trainable_parts": tuple(parts) if full else (),
    }


def lora_targets(family: Family, with_vision: bool) -> str:
    """Return the regular expression of the modules that get an adapter, anchored at full paths."""
    nested = [
        path.removeprefix(family.text + ".")
        for path in (family.vision, *family.projector, *family.other)
        if path.startswith(family.text + ".")
    ]
    not_nested = f"(?!({'|'.join(nested)})\\.)" if nested else ""
    text = rf"{family.text}\.{not_nested}.*\.({'|'.join(family.text_linears)})"
    if not with_vision:
        return text
    inside = [path.removeprefix(family.vision + ".") for path in family.projector if path.startswith(family.vision)]
    not_projector = f"(?!({'|'.join(inside)})\\.)" if inside else ""
    return rf"{text}|{family.vision}\.{not_projector}.*\.({'|'.join(family.vision_linears)})"


def _data(
    config: TrainingConfig, family: Family, source: ModelSource, device: Device, choices: list[Choice]
) -> dict[str, Any]:
    settings = family.image_settings(source.config, source.preprocessor, config.data.image_size)
    if settings.note:
        choices.append(Choice("data.image_size", str(config.data.image_size), settings.note))
    workers = config.hardware.num_workers
    return {
        "max_length": config.data.max_length,
        "image_size": config.data.image_size,
        "image_overrides": settings.overrides,
        "truncation": config.data.truncation,
        "allow_urls": config.data.allow_urls,
        "num_workers": workers if workers is not None else (2 if device.kind == "cuda" else 0),
    }


def _optimizer(config: TrainingConfig, device: Device, choices: list[Choice]) -> str:
    wish = config.training.optim
    if wish is None:
        wish = "paged_adamw_8bit" if device.kind == "cuda" else "adamw"
        reason = "8-bit states: a quarter of the memory" if device.kind == "cuda" else "training runs on the CPU"
        choices.append(Choice("training.optim", wish, reason))
    if wish != "adamw" and device.kind == "cpu":
        raise VlmtuneError(
            f"training.optim: {wish} needs a GPU, and none was found", "leave training.optim out, or use adamw"
        )
    return wish


def _installed(services: tuple[str, ...]) -> tuple[str, ...]:
    for service in services:
        if find_spec(service) is None:
            raise VlmtuneError(f"training.report_to: {service} is not installed", f"pip install {service}")
    return services


def _loss_chunk_tokens(source: ModelSource) -> int:
    """Labelled tokens whose logits exist at one time, so that they take about LOSS_CHUNK_BYTES.

    A fifth more at their peak, in the backward pass: log-softmax and two gradients, each in fp32. More still where the
    model caps its logits.
    """
    text = source.config.get("text_config") or source.config
    vocabulary = text.get("vocab_size") or source.config.get("vocab_size") or 32_000
    return max(32, LOSS_CHUNK_BYTES // (vocabulary * BYTES_PER_LOGIT) // 32 * 32)
