"""The ways to spend less memory, once, in the order in which they are given up. No torch here.

`--explain` prices them, the search for a config that fits applies them, and an out-of-memory message names those that
would have helped. The order: first what costs time or rounding of frozen weights only, then what the model learns.

Of the latter the rank goes first, down to 4: with adapters on every linear layer, as here, QLoRA's authors saw no
effect of the rank on the result, and LoRA's saw none of ranks from 4 to 64. Then the length of texts, down to 256,
which changes only the rows that are longer. Then the size of images, which takes detail from every row. Texts shorter
than that are the last resort.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vlmtune.config.schema import TrainingConfig
from vlmtune.families import find_family
from vlmtune.families.text_model import text_model
from vlmtune.hub.source import ModelSource

Values = dict[str, Any]
"""Dotted key → value."""
LARGEST_IMAGE_PX, SMALLEST_IMAGE_PX, IMAGE_STEP_PX = 1288, 224, 28
"""The smallest is the input of the smallest towers in use; below it small print is gone."""
SMALLEST_RANK = 4
TEXT_STEP = 7 / 8
TEXT_MULTIPLE = 16
HEAD_REASON = "the frozen output head in 4 bits: rounded"


@dataclass(frozen=True)
class ModelFacts:
    """What decides which levers a model has."""

    num_layers: int
    shares_embedding: bool
    """The head is the embedding, which cannot be quantised."""
    fixed_images: bool
    """`data.image_size` has no effect."""


@dataclass(frozen=True)
class Saving:
    """One way to spend less memory."""

    reason: str
    """What it costs, for people."""
    steps: Callable[[TrainingConfig, ModelFacts | None, int], list[Values]]
    """(config, model, text tokens of the longest row) -> ever stronger versions; none where it does not apply."""


def model_facts(source: ModelSource, model_name: str) -> ModelFacts:
    """Return the facts of a model."""
    text = text_model(source.config)
    family = find_family(source.config, model_name)
    settings = family.image_settings(source.config, source.preprocessor, SMALLEST_IMAGE_PX)
    return ModelFacts(text.num_layers, text.shares_embedding, fixed_images=not settings.overrides)


def changed(config: TrainingConfig, values: Values) -> TrainingConfig:
    """Return the config with other values."""
    tree = config.model_dump()
    for key, value in values.items():
        *parents, leaf = key.split(".")
        group = tree
        for part in parents:
            group = group[part]
        group[leaf] = value
    return TrainingConfig.model_validate(tree)


def value_at(config: TrainingConfig, key: str) -> Any:
    """Return the value of a dotted key."""
    found: Any = config
    for part in key.split("."):
        found = getattr(found, part)
    return found


def words_of(values: Values) -> tuple[str, ...]:
    """Return the `--set` words that stand for these values."""
    return tuple(f"{key}={as_yaml(value)}" for key, value in values.items())


def as_yaml(value: Any) -> str:
    """Return a plain value as YAML writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _recompute(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    hardware = config.hardware
    if hardware.gradient_checkpointing and hardware.checkpointed_layers is None:
        return []
    return [different(config, {"hardware.gradient_checkpointing": True, "hardware.checkpointed_layers": None})]


def _smaller_batch(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    rows, batch_size = rows_per_step(config), config.training.batch_size
    steps = []
    while batch_size > 1:
        batch_size = batch_size // 2 if batch_size % 2 == 0 else 1
        steps.append(batch_of(batch_size, rows))
    return steps


def rows_per_step(config: TrainingConfig) -> int:
    """Return the rows of one optimizer step."""
    return config.training.batch_size * config.training.gradient_accumulation_steps


def batch_of(batch_size: int, rows: int) -> Values:
    """Return the values that take `rows` an optimizer step, `batch_size` at a time."""
    return {"training.batch_size": batch_size, "training.gradient_accumulation_steps": rows // batch_size}


def _paged_optimizer(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    return [{"training.optim": "paged_adamw_8bit"}] if config.training.optim in ("adamw", "adamw_8bit") else []


def _adapters(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    if config.training.method != "full":
        return []
    frozen = {f"training.{key}": True for key in ("freeze_vision_tower", "freeze_projector")}
    return [different(config, {"training.method": "lora", **frozen})]


def _four_bits(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    """The tower stays as it is: quantising it is a lever of its own."""
    if config.training.method != "lora":
        return []
    values = {
        "training.method": "qlora",
        "training.quantization.load_in_4bit": True,
        "training.quantization.quantize_vision_tower": False,
    }
    return [different(config, values)]


def _four_bit_tower(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    applies = config.training.method == "qlora" and not config.training.quantization.quantize_vision_tower
    return [{"training.quantization.quantize_vision_tower": True}] if applies else []


def _four_bit_head(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    applies = config.training.method == "qlora" and not config.training.quantization.quantize_head
    can = model is None or not model.shares_embedding
    return [{"training.quantization.quantize_head": True}] if applies and can else []


def _lower_rank(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    """Alpha goes with it, so that the adapters keep their scale."""
    rank, alpha = config.training.lora.rank, config.training.lora.alpha
    steps = []
    while config.training.method != "full" and rank // 2 >= SMALLEST_RANK:
        rank, alpha = rank // 2, max(1, alpha // 2)
        steps.append({"training.lora.rank": rank, "training.lora.alpha": alpha})
    return steps


def _text_to(least: int) -> Callable[[TrainingConfig, ModelFacts | None, int], list[Values]]:
    def steps(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
        length = min(config.data.max_length, text_tokens)
        found = []
        while length > least:
            length = max(least, int(length * TEXT_STEP) // TEXT_MULTIPLE * TEXT_MULTIPLE)
            found.append({"data.max_length": length, "data.truncation": "cut"})
        return found

    return steps


def _smaller_images(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    if model is not None and model.fixed_images:
        return []
    side_px = config.data.image_size or LARGEST_IMAGE_PX
    steps = []
    while side_px > SMALLEST_IMAGE_PX:
        side_px = max(SMALLEST_IMAGE_PX, (side_px - side_px // 16) // IMAGE_STEP_PX * IMAGE_STEP_PX)
        steps.append({"data.image_size": side_px})
    return steps


SAVINGS = (
    Saving("activations are computed twice instead of kept: a third more work, the same result", _recompute),
    Saving("fewer rows at a time, as many a step: the same result, less work for the card at once", _smaller_batch),
    Saving("8-bit optimizer states, which may lie in main memory", _paged_optimizer),
    Saving("adapters learn instead of every weight", _adapters),
    Saving("the frozen base in 4 bits: rounded, and the adapters learn around that", _four_bits),
    Saving("the frozen vision tower in 4 bits: rounded", _four_bit_tower),
    Saving(HEAD_REASON, _four_bit_head),
    Saving("smaller adapters at the same scale; on all layers, as here, the rank matters little", _lower_rank),
    Saving("texts over this are cut from the end of their last answer, and counted", _text_to(256)),
    Saving("smaller images: less detail", _smaller_images),
    Saving("texts over this are cut from the end of their last answer, and counted", _text_to(128)),
)


def keep_all() -> Values:
    """Return the values with which no layer recomputes."""
    return {"hardware.gradient_checkpointing": False, "hardware.checkpointed_layers": None}


def recompute_first(num_layers: int) -> Values:
    """Return the values with which the language model's first layers recompute."""
    return {"hardware.gradient_checkpointing": True, "hardware.checkpointed_layers": num_layers}


def spendings(config: TrainingConfig, model: ModelFacts | None) -> list[Values]:
    """Return what takes more memory and gives speed or exactness for it."""
    training, hardware = config.training, config.hardware
    quantization = training.quantization
    quantised = training.method == "qlora"
    few = (hardware.checkpointed_layers or model.num_layers) // 2 if model else 0
    found = [
        (hardware.gradient_checkpointing, keep_all()),
        (hardware.gradient_checkpointing and few > 0, recompute_first(few)),
        (
            training.gradient_accumulation_steps % 2 == 0,
            batch_of(2 * training.batch_size, rows_per_step(config)),
        ),
        (quantised and quantization.quantize_vision_tower, {"training.quantization.quantize_vision_tower": False}),
        (quantised and quantization.quantize_head, {"training.quantization.quantize_head": False}),
        *((training.optim != name, {"training.optim": name}) for name in ("adamw", "adamw_8bit")),
    ]
    return [different(config, values) for applies, values in found if applies]


def different(config: TrainingConfig, values: Values) -> Values:
    """Return the values that are not those of the config."""
    return {key: value for key, value in values.items() if value_at(config, key) != value}
