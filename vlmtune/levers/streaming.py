"""Streaming: frozen 4-bit layers lie in main memory and come to the card when they are needed.

What moves them is models/streaming.py: evaluation and `generate` load streamed models too, without the other levers.
"""

from typing import TYPE_CHECKING

from vlmtune.config.schema import TrainingConfig
from vlmtune.config.values import Values
from vlmtune.errors import VlmtuneError
from vlmtune.families.base import Family
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.base import LAYERS, Decision, GivesUp, Lever, OnResume, Saving

if TYPE_CHECKING:
    from torch import nn

    from vlmtune.plan.types import Device, RunPlan

KEY = "hardware.streamed_layers"
ON_CARD = 2
"""Streamed layers that are on the card at any time: the one at work, and the next one on its way."""


def _decide(config: TrainingConfig, model: ModelFacts, device: "Device") -> Decision:
    wish = config.hardware.streamed_layers
    if wish > model.num_layers:
        raise VlmtuneError(
            f"{KEY}: {wish} are wanted, but the language model of {model.name} has {model.num_layers} layers",
            f"use at most {model.num_layers}",
        )
    if 0 < wish <= ON_CARD:
        raise VlmtuneError(
            f"{KEY}: {wish} saves nothing, because {ON_CARD} of the streamed layers are on the card at any time",
            f"use {ON_CARD + 1} or more, or 0 for none",
        )
    return Decision({"streamed_layers": wish})


def _refused(config: TrainingConfig) -> list[str]:
    if config.hardware.streamed_layers == 0 or config.training.method == "qlora":
        return []
    return [f"{KEY}: method {config.training.method} has no 4-bit layers to stream; use training.method: qlora"]


def _more_layers(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    if model is None or config.training.method != "qlora":
        return []
    fewest = max(ON_CARD, config.hardware.streamed_layers) + 1
    return [{KEY: number} for number in range(fewest, model.num_layers + 1)]


def _half_and_all(steps: list[Values]) -> list[Values]:
    return [steps[len(steps) // 2], steps[-1]] if len(steps) > 1 else steps


def _more(config: TrainingConfig, model: ModelFacts | None) -> list[Values]:
    number = config.hardware.streamed_layers
    fewer = [{KEY: number // 2}] if number // 2 > ON_CARD else []
    return [{KEY: 0}, *fewer] if number else []


def _main_memory_bytes(model: "nn.Module", plan: "RunPlan", family: Family, batch_tokens: int) -> int:
    stream = getattr(model, "layer_stream", None)
    if stream is None or plan.sharded:
        return 0
    if plan.device == "cpu":  # where the layers themselves are counted among all weights
        return sum(buffer.nbytes for buffer in stream.buffers)
    return sum(stream.layer_bytes)


STREAMING = Lever(
    name="Layers in main memory",
    keys=(KEY,),
    costs="time: in each forward and backward pass the streamed layers' 4-bit weights come from main memory, "
    "while the layers between them are computed",
    decide=_decide,
    fields=("streamed_layers",),
    savings=(
        Saving(
            GivesUp.TIME,
            "frozen 4-bit layers lie in main memory and come to the card while others are computed: the same result",
            _more_layers,
            spares=LAYERS,
            is_even=True,
            priced=_half_and_all,
        ),
    ),
    more=_more,
    on_resume=OnResume.FREE,
    excludes=_refused,
    main_memory_bytes=_main_memory_bytes,
)
