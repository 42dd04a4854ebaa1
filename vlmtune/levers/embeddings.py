"""Embeddings in main memory: tables that are only ever looked up by row leave the card; the rows of a batch travel.

Left open, it is on wherever it can be, on cards of every size. A batch of 1,000 tokens waits 2 to 10 ms for its rows,
one core at work (7 MB of a model of 7 billion parameters, 22 MB of Gemma 4 E4B), and no more than that: see
models/embeddings.py. What it frees, up to half of a small model, keeps activations that would be computed twice.
"""

from typing import TYPE_CHECKING

from vlmtune.config.schema import TrainingConfig
from vlmtune.config.values import Values
from vlmtune.errors import VlmtuneError
from vlmtune.families.base import Family
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.base import Choice, Decision, GivesUp, Lever, OnResume, Saving

if TYPE_CHECKING:
    from torch import nn

    from vlmtune.plan.types import Device, RunPlan

KEY = "hardware.offload_embeddings"
COST = "only the rows of a batch come to the card"


def _decide(config: TrainingConfig, model: ModelFacts, device: "Device") -> Decision:
    wish = config.hardware.offload_embeddings
    if wish is False:
        return Decision({"offload_embeddings": False})
    against = _against(config, model)
    if wish and against:
        raise VlmtuneError(f"{KEY}: true is not possible with {model.name}: {against}", f"leave {KEY} out")
    if wish is None and device.kind == "cpu":
        against = "training runs on the CPU"
    said = ("false", against) if against else ("true", _for(model))
    choices = (Choice(KEY, *said),) if wish is None else ()
    return Decision({"offload_embeddings": not against}, choices)


def _against(config: TrainingConfig, model: ModelFacts) -> str | None:
    """Return why the tables must be on the card; None where they need not."""
    if config.training.method == "full":
        return "method full trains the embeddings"
    if model.shares_embedding and not model.per_layer_embeddings:
        return "the output head shares the embeddings' weights, and needs them on the card"
    return None


def _for(model: ModelFacts) -> str:
    if not model.shares_embedding:
        return f"no output head shares the embeddings: {COST}"
    return f"no output head shares the embeddings of the layers: {COST}"


def _to_main_memory(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    wished_on_card = config.hardware.offload_embeddings is False
    return [{KEY: True}] if wished_on_card and (model is None or not _against(config, model)) else []


def _more(config: TrainingConfig, model: ModelFacts | None) -> list[Values]:
    may_be_off = config.hardware.offload_embeddings is not False
    return [{KEY: False}] if may_be_off and model is not None and not _against(config, model) else []


def _tables_bytes(model: "nn.Module", plan: "RunPlan", family: Family, batch_tokens: int) -> int:
    """Return what of the weights is not where the run is."""
    if plan.device == "cpu":
        return 0
    return sum(parameter.nbytes for parameter in model.parameters() if parameter.device.type == "cpu")


EMBEDDINGS = Lever(
    name="Embeddings in main memory",
    keys=(KEY,),
    costs="time: some milliseconds a batch, for a lookup by the processor and a copy of the rows to the card",
    decide=_decide,
    fields=("offload_embeddings",),
    savings=(Saving(GivesUp.TIME, "embeddings are looked up in main memory: the same rows", _to_main_memory),),
    more=_more,
    on_resume=OnResume.FREE,
    main_memory_bytes=_tables_bytes,
    main_memory_is_mapped=True,
)
