"""Sharding: each of several GPUs keeps a share of every frozen 4-bit layer, and gathers a layer when it is needed.

What gathers them is models/layers/shards.py.
"""

from typing import TYPE_CHECKING

from vlmtune.config.schema import TrainingConfig
from vlmtune.config.values import Values
from vlmtune.errors import VlmtuneError
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.base import LAYERS, Decision, GivesUp, Lever, OnResume, Saving
from vlmtune.levers.gpus.number import KEY as NUM_GPUS
from vlmtune.levers.gpus.number import num_gpus

if TYPE_CHECKING:
    from vlmtune.plan.types import Device

KEY = "hardware.shard"
ALWAYS: Values = {KEY: "always"}


def in_the_way(config: TrainingConfig) -> str | None:
    """Return why the layers of a config cannot be shared by its GPUs; None where they can."""
    if config.training.method != "qlora":
        return f"method {config.training.method} has no 4-bit layers to share; use training.method: qlora"
    if config.hardware.streamed_layers:
        return "layers come from the other GPUs or from main memory, not from both; hardware.streamed_layers: 0"
    return None


def may_share(config: TrainingConfig, number: int) -> bool:
    """Return whether so many GPUs share the layers of a run as soon as one does not hold it."""
    return config.hardware.shard == "auto" and number > 1 and not in_the_way(config)


def _decide(config: TrainingConfig, model: ModelFacts, device: "Device") -> Decision:
    sharded = config.hardware.shard == "always"
    if sharded and num_gpus(config, device) == 1:
        raise VlmtuneError(
            f"{KEY}: always needs several GPUs to share the layers, and the run has one",
            f"{NUM_GPUS}: 2, or {KEY}: auto",
        )
    return Decision({"sharded": sharded})


def _refused(config: TrainingConfig) -> list[str]:
    why = in_the_way(config) if config.hardware.shard == "always" else None
    return [f"{KEY}: {why}"] if why else []


def _share(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    is_open = config.hardware.shard == "auto" and config.hardware.num_gpus not in (None, 1)
    return [ALWAYS] if is_open and not in_the_way(config) else []


SHARD = Lever(
    name="Layers shared by the GPUs",
    keys=(KEY,),
    costs="time: in each forward and backward pass every GPU gathers the language model's 4-bit layers from the others",
    decide=_decide,
    fields=("sharded",),
    savings=(
        Saving(
            GivesUp.TIME,
            "each GPU keeps a share of the frozen 4-bit layers, and gathers those of the others: the same result",
            _share,
            spares=LAYERS,
        ),
    ),
    on_resume=OnResume.FREE,
    excludes=_refused,
)
