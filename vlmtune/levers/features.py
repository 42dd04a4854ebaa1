"""Features: the frozen tower encodes every image once, before the language model loads; the run reads what it made."""

from typing import TYPE_CHECKING

from vlmtune.config.schema import TrainingConfig
from vlmtune.config.values import Values
from vlmtune.errors import VlmtuneError
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.base import TOWER, WORK, Choice, Decision, GivesUp, Lever, OnResume, RowFacts, Saving
from vlmtune.units import GIB

if TYPE_CHECKING:
    from vlmtune.plan.types import Device, RunPlan

KEY, BUDGET = "data.cache_features", "data.cache_features_gib"
FEWEST_PASSES = 500
"""Passes of the tower that a cache must save: fewer take less time than loading the tower on its own."""
NUMBER_BYTES = {"fp32": 4}
HALF_BYTES = 2


def _decide(config: TrainingConfig, model: ModelFacts, device: "Device") -> Decision:
    """What the rows decide comes later (`_by_rows`)."""
    data = config.data
    reason = _why_not(config, model)
    if data.cache_features is True and reason:
        raise VlmtuneError(f"{KEY}: true, but {reason}", f"leave {KEY} out, or set it to false")
    values = {"cache_features": data.cache_features is True, "cache_features_gib": data.cache_features_gib}
    if data.cache_features != "auto":
        return Decision(values)
    if reason is None and device.kind == "cpu":
        reason = f"training runs on the CPU, where it frees no card; {KEY}: true encodes once all the same"
    if reason is None and (config.training.num_epochs or 1) <= 1:
        reason = "every image is seen once: it would save memory and no time"
    if reason:
        return Decision(values, (Choice(KEY, "false", reason),))
    return Decision(values | {"cache_features": True}, (Choice(KEY, "true", _GAIN),))


_GAIN = "the tower is frozen: it encodes every image once, before the language model loads, and leaves the card"


def _excludes(config: TrainingConfig) -> list[str]:
    if config.data.cache_features is not True or not (reason := _learning(config)):
        return []
    return [f"{KEY}: true, but {reason}"]


def _why_not(config: TrainingConfig, model: ModelFacts | None) -> str | None:
    """Return why the images cannot be encoded before training; None where they can."""
    if reason := _learning(config):
        return reason
    if model is not None and model.family.not_cacheable:
        return f"{model.family.name} models cannot have their images encoded before: {model.family.not_cacheable}"
    return None


def _learning(config: TrainingConfig) -> str | None:
    training = config.training
    if training.method == "full":
        return "method full saves the whole model, its tower included"
    if training.lora.vision_tower:
        return "the vision tower learns (training.lora.vision_tower), so its features change at every step"
    if config.data.augment.is_on:
        return "pictures are changed anew in each epoch (data.augment)"
    return None


def _by_rows(config: TrainingConfig, model: ModelFacts, plan: "RunPlan", rows: RowFacts) -> Decision | None:
    """Leave the cache out where `auto` has chosen it, and the rows say that it does not pay or does not fit."""
    if config.data.cache_features != "auto" or not plan.cache_features:
        return None
    if reason := _not_for(rows, plan, model):
        return Decision({"cache_features": False}, (Choice(KEY, "false", reason),))
    return None


def _not_for(rows: RowFacts, plan: "RunPlan", model: ModelFacts) -> str | None:
    passes = plan.num_epochs
    if plan.max_steps:
        passes = min(passes, plan.max_steps * plan.rows_per_step / max(1, rows.num_rows))
    saved = int((passes - 1) * rows.num_images)
    if saved < FEWEST_PASSES:
        return f"{rows.num_images:,} images: {max(0, saved):,} passes of the tower are fewer than it pays for"
    needed_bytes = rows.image_tokens(plan, model) * bytes_per_token(plan, model)
    needed, budget_bytes = f"{needed_bytes / GIB:.1f} GiB", budget_bytes_of(plan)
    if needed_bytes > budget_bytes:
        return f"the features would take {needed}, above {BUDGET}: {plan.cache_features_gib:g}"
    if needed_bytes > (rows.free_cache_bytes() or 0):
        return f"the features would take {needed}, and the disk of the cache folder has less to spare"
    return None


def bytes_per_token(plan: "RunPlan", model: ModelFacts) -> int:
    """Return what the features of one image token take."""
    return model.feature_outputs * model.hidden_size * NUMBER_BYTES.get(plan.base_dtype, HALF_BYTES)


def budget_bytes_of(plan: "RunPlan") -> int:
    """Return what all cached features may take."""
    return int(plan.cache_features_gib * GIB)


def _cached(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    applies = config.data.cache_features is not True and _why_not(config, model) is None
    return [{KEY: True}] if applies else []


def _more(config: TrainingConfig, model: ModelFacts | None) -> list[Values]:
    return [{KEY: False}] if config.data.cache_features is True else []


FEATURES_LEVER = Lever(
    name="Vision features cached",
    keys=(KEY, BUDGET),
    costs="time and disk before the first step; later epochs are faster",
    decide=_decide,
    by_rows=_by_rows,
    fields=("cache_features", "cache_features_gib"),
    savings=(
        Saving(
            GivesUp.TIME,
            "images are encoded before the language model loads, and kept on disk: the tower leaves the card",
            _cached,
            spares=(*TOWER, *WORK),
            # Encoding may take more than training a very small model.
            may_cost_memory=True,
        ),
    ),
    more=_more,
    on_resume=OnResume.FREE,
    excludes=_excludes,
)
