"""TrainingConfig + model + device → RunPlan: every "auto" decided once, with its reason. No torch here.

What a lever becomes, its own file decides (vlmtune/levers); here is what no lever owns. Estimate and train take a
RunPlan and nothing else: neither sees YAML, a preset or a flag.
"""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vlmtune import levers
from vlmtune.config.schema import TrainingConfig
from vlmtune.errors import VlmtuneError
from vlmtune.families.facts import ModelFacts
from vlmtune.hub.source import ModelSource
from vlmtune.levers.base import Choice, RowFacts
from vlmtune.plan.types import Augment, Device, RunPlan

LOSS_CHUNK_BYTES = 256 * 2**20
BYTES_PER_LOGIT = 10  # between the peak of the forward pass (fp32 copy, log-softmax: 8) and of the backward pass (12)


def make_plan(
    config: TrainingConfig, source: ModelSource, device: Device, data_sha256: str = "", rows: RowFacts | None = None
) -> RunPlan:
    """Decide every open value of `config` for this model, device and data file; without `rows` for any rows.

    Raises:
        VlmtuneError: the model belongs to no family, or a wish cannot be granted on this device.
    """
    model = source.facts(config.model.name)
    choices: list[Choice] = []
    training = config.training
    decided = {
        "experiment_name": config.experiment_name,
        "model_name": Path(config.model.name).name if Path(config.model.name).is_absolute() else config.model.name,
        "model_revision": config.model.revision,
        "model": source.location,
        "revision": source.revision,
        "data_sha256": data_sha256,
        "family": _checked_family(model, config, choices),
        "boxes": model.family.writes_boxes(model.config).name,
        "device": device.kind,
        "attention": _attention(model, choices),
        "has_own_head": model.has_own_head,
        **_start(model),
        **_number_formats(config, device, choices),
        "chat_template_kwargs": config.data.chat_template_kwargs.model_dump(exclude_none=True),
        "augment": Augment(**config.data.augment.model_dump()),
        "allow_urls": config.data.allow_urls,
        "num_workers": _num_workers(config, device),
        "num_epochs": 1.0 if training.num_epochs is None else training.num_epochs,
        "max_steps": training.max_steps,
        "learning_rate": training.learning_rate,
        "warmup_ratio": training.warmup_ratio,
        "lr_scheduler_type": training.lr_scheduler_type,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "loss_chunk_tokens": _loss_chunk_tokens(model),
        "seed": training.seed,
        "logging_steps": training.logging_steps,
        "eval_steps": training.eval_steps,
        "save_steps": training.save_steps,
        "save_minutes": training.save_minutes,
        "save_total_limit": training.save_total_limit,
        **config.evaluation.model_dump(include={"metrics", "generate_rows", "generate_minutes"}),
        "save_best_by": training.save_best_by,
        "early_stopping_patience": training.early_stopping_patience,
        "report_to": _installed(training.report_to),
        **_levers(config, model, device, choices),
    }
    plan = RunPlan(**decided, choices=tuple(choices))
    return _for_rows(plan, config, model, rows) if rows else plan


def _for_rows(plan: RunPlan, config: TrainingConfig, model: ModelFacts, rows: RowFacts) -> RunPlan:
    """Return the plan with what the levers decide otherwise for these rows, in place of what they chose before."""
    for lever in levers.LEVERS:
        if decision := lever.by_rows(config, model, plan, rows):
            decided = {choice.key for choice in decision.choices}
            kept = tuple(choice for choice in plan.choices if choice.key not in decided)
            plan = replace(plan, **decision.values, choices=kept + decision.choices)
    return plan


def _levers(config: TrainingConfig, model: ModelFacts, device: Device, choices: list[Choice]) -> dict[str, Any]:
    """Return what each lever becomes; tuples that several give for one field are joined.

    Raises:
        VlmtuneError: a lever cannot be pulled here, or not beside another.
    """
    if refused := [reason for lever in levers.LEVERS for reason in lever.excludes(config)]:
        raise VlmtuneError(refused[0], problems=tuple(VlmtuneError(reason) for reason in refused[1:]))
    values: dict[str, Any] = {"unquantized": ()}
    for lever in levers.LEVERS:
        decision = lever.decide(config, model, device)
        choices += decision.choices
        for field, value in decision.values.items():
            values[field] = (*values[field], *value) if field in values and isinstance(value, tuple) else value
    return values


def _checked_family(model: ModelFacts, config: TrainingConfig, choices: list[Choice]) -> str:
    family, wanted = model.family, config.model.type
    if wanted and wanted != family.name and wanted not in family.model_types:
        reason = f"the model's config.json says so; model.type: {wanted} is not used"
        choices.append(Choice("model.type", family.name, reason))
    return family.name


def _start(model: ModelFacts) -> dict[str, str]:
    return {"adapter": str(model.adapter.folder), "adapter_sha256": model.adapter.sha256} if model.adapter else {}


def _attention(model: ModelFacts, choices: list[Choice]) -> str:
    if model.caps_attention:
        choices.append(Choice("attention", "eager", "the model caps its attention scores: slower, and more memory"))
        return "eager"
    if eager := model.family.eager:
        reason = "transformers has no other there: more memory, where that part is used"
        choices.append(Choice("attention", f"sdpa, eager in {', '.join(eager)}", reason))
    return "sdpa"


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


def _num_workers(config: TrainingConfig, device: Device) -> int:
    wish = config.hardware.num_workers
    return wish if wish is not None else (2 if device.kind == "cuda" else 0)


def _installed(services: tuple[str, ...]) -> tuple[str, ...]:
    for service in services:
        if find_spec(service) is None:
            raise VlmtuneError(f"training.report_to: {service} is not installed", f"pip install {service}")
    return services


def _loss_chunk_tokens(model: ModelFacts) -> int:
    """Labelled tokens whose logits exist at one time, so that they take about LOSS_CHUNK_BYTES.

    A fifth more at their peak, in the backward pass: log-softmax and two gradients, each in fp32. More still where the
    model caps its logits.
    """
    return max(32, LOSS_CHUNK_BYTES // (model.vocabulary * BYTES_PER_LOGIT) // 32 * 32)
