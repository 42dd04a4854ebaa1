"""TrainingConfig + model config + device → RunPlan: every "auto" decided once, with its reason. No torch here.

Estimate and train take a RunPlan and nothing else: neither sees YAML, a preset or a flag.
"""

import dataclasses
import json
import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vlmtune.config.schema import TrainingConfig
from vlmtune.errors import VlmtuneError
from vlmtune.models.families import find_family
from vlmtune.models.families.base import Family
from vlmtune.models.families.text_model import text_model
from vlmtune.models.source import ModelSource

LOSS_CHUNK_BYTES = 256 * 2**20
FREE_ON_RESUME = {
    "choices",
    "gradient_checkpointing",
    "checkpointed_layers",
    "num_workers",
    "logging_steps",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "report_to",
}
ROWS_OF_A_STEP = {"batch_size", "gradient_accumulation_steps"}
BYTES_PER_LOGIT = 10  # 16-bit logit, fp32 copy, fp32 log-softmax


@dataclass(frozen=True)
class Device:
    """The processor a plan is made for."""

    kind: str
    """`cuda` or `cpu`."""
    name: str
    bf16: bool
    total_bytes: int | None = None


@dataclass(frozen=True)
class Choice:
    """A value that the plan decided or changed, and why."""

    key: str
    value: str
    reason: str


@dataclass(frozen=True)
class RunPlan:
    """Everything a run needs, decided. JSON-able; the only thing that the model builder and the engine read."""

    experiment_name: str
    model_name: str
    """As the user wrote it; of an absolute folder the last name, because run folders are shared."""
    model_revision: str | None
    """As the user wrote it: a branch, a tag or a commit."""
    model: str
    """Hub id, or an absolute folder."""
    revision: str | None
    """The commit of a hub model."""
    data_sha256: str
    """Of the training rows: a resumed run must see the same ones."""
    family: str
    device: str
    method: str
    attention: str
    """`sdpa`, or `eager` for models whose attention scores are capped, which sdpa cannot do."""
    # number formats: "bf16", "fp16" or "fp32"
    base_dtype: str
    autocast_dtype: str | None
    adapter_dtype: str | None
    loss_scaling: bool
    # 4-bit base
    quant_type: str | None
    double_quant: bool
    unquantized: tuple[str, ...]
    """Full module paths that stay in `base_dtype`."""
    # what learns
    lora_targets: str | None
    """Regular expression over full module paths."""
    lora_rank: int
    lora_alpha: int
    lora_dropout: float
    trainable_parts: tuple[str, ...]
    """Method full: the parts whose weights are trained."""
    # data
    max_length: int
    image_size: int | None
    image_overrides: dict[str, Any]
    truncation: str
    allow_urls: bool
    num_workers: int
    # steps
    batch_size: int
    gradient_accumulation_steps: int
    num_epochs: float
    max_steps: int | None
    learning_rate: float
    warmup_ratio: float
    lr_scheduler_type: str
    optimizer: str
    weight_decay: float
    max_grad_norm: float
    gradient_checkpointing: bool
    checkpointed_layers: int | None
    """The language model's layers that recompute, from the first one on; None: all."""
    loss_chunk_tokens: int
    seed: int
    logging_steps: int
    eval_steps: int | None
    save_steps: int
    save_total_limit: int
    report_to: tuple[str, ...]
    choices: tuple[Choice, ...] = field(default=())

    @property
    def rows_per_step(self) -> int:
        """Rows that one optimizer step learns from."""
        return self.batch_size * self.gradient_accumulation_steps

    def save(self, path: Path) -> None:
        """Write the plan as JSON; a model folder is written relative to it: the run folder can be shared."""
        values = dataclasses.asdict(self)
        if Path(self.model).is_absolute():
            values["model"] = os.path.relpath(self.model, path.parent.resolve())
        path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "RunPlan":
        """Return the plan that `save` wrote; raise when another version of vlmtune wrote it differently."""
        try:
            values = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise VlmtuneError(f"{path} is damaged", "delete the run folder and train again") from None
        names = {item.name for item in dataclasses.fields(cls)}
        if set(values) != names:
            changed = ", ".join(sorted(set(values) ^ names))
            raise VlmtuneError(
                f"plan.json was written by another version of vlmtune: keys that differ: {changed}",
                "use the version named in versions.json, or train again",
            )
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        values["choices"] = tuple(Choice(**choice) for choice in values["choices"])
        folder = (path.parent / values["model"]).resolve()
        return cls(**{**values, "model": str(folder) if folder.is_dir() else values["model"]})

    def differences(self, other: "RunPlan") -> list[str]:
        """Return the values that decide the result and differ from `other`: `key: other -> own`.

        How the rows of a step are divided decides nothing, as long as they are the same rows.
        """
        free = FREE_ON_RESUME | (ROWS_OF_A_STEP if self.rows_per_step == other.rows_per_step else set())
        return [
            f"{item.name}: {getattr(other, item.name)} -> {getattr(self, item.name)}"
            for item in dataclasses.fields(self)
            if item.name not in free and getattr(self, item.name) != getattr(other, item.name)
        ]


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
    """Labelled tokens whose logits exist at one time, so that they take about LOSS_CHUNK_BYTES."""
    text = source.config.get("text_config") or source.config
    vocabulary = text.get("vocab_size") or source.config.get("vocab_size") or 32_000
    return max(32, LOSS_CHUNK_BYTES // (vocabulary * BYTES_PER_LOGIT) // 32 * 32)
