"""Method: every weight, adapters on a 16-bit base, or adapters on a base in 4 bits."""

from typing import TYPE_CHECKING, Any

from vlmtune.config.schema import TrainingConfig
from vlmtune.config.values import Values, as_yaml, not_yet, value_at
from vlmtune.errors import VlmtuneError
from vlmtune.families.base import Family
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.base import Choice, Decision, GivesUp, Lever, Saving
from vlmtune.levers.lora.targets import VISION, lora_targets, targets_of

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

    from vlmtune.plan.types import Device, RunPlan

KEY = "training.method"
LOAD, TYPE, DOUBLE = (
    f"training.quantization.{name}" for name in ("load_in_4bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
)
AS_IN_FILES = "as in the model's files, which are in 4 bits already"
FREEZE = ("training.freeze_vision_tower", "training.freeze_projector")


def _decide(config: TrainingConfig, model: ModelFacts, device: "Device") -> Decision:
    training, family = config.training, model.family
    full, quantised = training.method == "full", training.method == "qlora"
    parts = ["text", "head"]
    parts += ["vision"] * (not training.freeze_vision_tower) + ["projector"] * (not training.freeze_projector)
    bits, choices = _bits(config, model)
    return Decision(
        {
            "method": training.method,
            **bits,
            "unquantized": family.unpacked if quantised else (),
            "lora_targets": None if full else _targets(config, model),
            "lora_dropout": training.lora.dropout,
            "trainable_parts": tuple(parts) if full else (),
        },
        choices,
    )


def _bits(config: TrainingConfig, model: ModelFacts) -> tuple[dict[str, Any], tuple[Choice, ...]]:
    """Return how the base is stored, and what is told of it: files that are in 4 bits stay as they are.

    Raises:
        VlmtuneError: they are, and a base in 16 bits is wanted.
    """
    quantised, files = config.training.method == "qlora", model.prequantised
    if files is None:
        quantization = config.training.quantization
        quant_type = quantization.bnb_4bit_quant_type if quantised else None
        return {"quant_type": quant_type, "double_quant": quantised and quantization.bnb_4bit_use_double_quant}, ()
    if not quantised:
        raise VlmtuneError(
            f"{KEY}: {config.training.method} trains on weights in 16 bits, and {model.name} has them in 4 bits",
            f"use {KEY}: qlora, or name the 16-bit model that it was made of",
        )
    reason = f"so are {len(files.packed)} layers in the model's files, which stay as they are"
    choices = [Choice(TYPE, files.quant_type, reason)]
    if value_at(config, DOUBLE) != files.double_quant:
        choices.append(Choice(DOUBLE, as_yaml(files.double_quant), AS_IN_FILES))
    return {"quant_type": files.quant_type, "double_quant": files.double_quant, "prequantised": True}, tuple(choices)


def _targets(config: TrainingConfig, model: ModelFacts) -> str:
    with_vision = config.training.lora.vision_tower
    if model.adapter:
        return targets_of(model.adapter, model.family, with_vision)
    return lora_targets(model.family, with_vision)


def _adapters(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    if config.training.method != "full":
        return []
    return [not_yet(config, {KEY: "lora", **dict.fromkeys(FREEZE, True)})]


def _four_bits(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    """The tower stays as it is: quantising it is a lever of its own."""
    if config.training.method != "lora":
        return []
    return [not_yet(config, {KEY: "qlora", LOAD: True, "training.quantization.quantize_vision_tower": False})]


def adapt(model: "PreTrainedModel", plan: "RunPlan", family: Family) -> "PreTrainedModel | PeftModel":
    """Return the frozen model with what is to be trained, and nothing else, requiring gradients."""
    import torch
    from peft import get_peft_model

    if plan.lora_targets is None:
        for name, parameter in model.named_parameters():
            if family.part_of(name) in plan.trainable_parts:
                parameter.requires_grad_(True)
        return model
    with torch.device(model.get_output_embeddings().weight.device):  # embeddings may be on the CPU
        adapted = get_peft_model(model, lora_config(plan))
    # Written into every checkpoint and the adapter; PEFT would put the folder's full path there.
    adapted.peft_config["default"].base_model_name_or_path = plan.model_name
    return adapted


def lora_config(plan: "RunPlan") -> "LoraConfig":
    """Return the plan's adapters in PEFT's words."""
    from peft import LoraConfig

    return LoraConfig(
        r=plan.lora_rank,
        lora_alpha=plan.lora_alpha,
        lora_dropout=plan.lora_dropout,
        target_modules=plan.lora_targets,
        bias="none",
        task_type="CAUSAL_LM",
    )


METHOD = Lever(
    name="What learns",
    keys=(KEY, LOAD, TYPE, DOUBLE, *FREEZE, "training.lora.dropout", VISION),
    costs="adapters in place of every weight; then rounding of the frozen base to 4 bits",
    decide=_decide,
    fields=("method", "quant_type", "double_quant", "lora_targets", "lora_dropout", "trainable_parts", "prequantised"),
    savings=(
        Saving(GivesUp.FULL_TUNING, "adapters learn instead of every weight", _adapters),
        Saving(
            GivesUp.BASE_ROUNDING,
            "the frozen base in 4 bits: rounded, and the adapters learn around that",
            _four_bits,
        ),
    ),
)
