"""CUDA graphs: what a layer launches is recorded once for each length of packs, and launched in one from then on.

What records is models/graphs, which imports torch.
"""

from typing import TYPE_CHECKING

from vlmtune.config.schema import TrainingConfig
from vlmtune.config.values import Values, changed
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.base import Choice, Decision, Lever, OnResume, Spending
from vlmtune.levers.speed.packing import PACKING, packs_rows
from vlmtune.levers.speed.varlen import VARLEN, why_never

if TYPE_CHECKING:
    from vlmtune.plan.types import Device

KEY = "hardware.cuda_graphs"
AUTO = False
"""What `auto` is: it pays where the processor is slower than the card, and takes memory."""
WITHOUT_VARLEN = "rows of a pack need hardware.varlen_attention, which is not to be had here"
RECORDED_LAUNCH_BYTES = 9200
"""What the driver keeps of a launch in a graph, at most: on an H200 5200 (LLaVA) to 9100 (Qwen3-VL), by `driver_bytes`
of runs with and without (tests/gpu/measured/fast.json)."""


def _decide(config: TrainingConfig, model: ModelFacts, device: "Device") -> Decision:
    wish = config.hardware.cuda_graphs
    if not (AUTO if wish == "auto" else wish):
        return Decision({"cuda_graphs": False})
    if reason := _why_not(config, model, device):
        choices = (Choice(KEY, "false", f"{reason}: layers launch one kernel after the other"),) if wish is True else ()
        return Decision({"cuda_graphs": False}, choices)
    return Decision({"cuda_graphs": True})


def _why_not(config: TrainingConfig, model: ModelFacts, device: "Device") -> str | None:
    if device.kind == "cpu":
        return "training runs on the CPU, for which nothing is launched"
    if reason := _why_never(config, model):
        return reason
    if not VARLEN.decide(config, model, device).values["varlen_attention"]:
        return WITHOUT_VARLEN
    return "a run on several GPUs is not recorded" if device.launched else None


def _why_never(config: TrainingConfig, model: ModelFacts) -> str | None:
    """Return why no card records the layers."""
    hardware, training = config.hardware, config.training
    if not packs_rows(config, model):
        return "without training.packing: true batches have too many lengths"
    if hardware.varlen_attention is False or why_never(config, model):
        return WITHOUT_VARLEN
    if model.family.sees_both_ways:
        return "images or prompts that see both ways have a mask of pairs of tokens"
    if not hardware.gradient_checkpointing or hardware.offload_activations:
        return "recorded layers recompute from what stays on the card"
    if training.method == "full" or training.lora.dropout:
        return "adapters without dropout alone are recorded"
    if hardware.lean_lora is False:
        return "hardware.lean_lora alone adds gradients up where they are"
    if hardware.num_gpus not in (None, 1):
        return "a run on several GPUs is not recorded"
    return None


def _recorded_packs(config: TrainingConfig, model: ModelFacts, tokens: int) -> list[Values]:
    """The packs that memory buys, or those that the config has, as graphs."""
    packs = PACKING.spending.levels(config, model, tokens) or [{}]
    return [values | recorded for values in packs for recorded in _recorded(changed(config, values), model)]


def _recorded(config: TrainingConfig, model: ModelFacts | None) -> list[Values]:
    if model is None or config.hardware.cuda_graphs != "auto" or _why_never(config, model):
        return []
    return [{KEY: True}]


GRAPHS = Lever(
    name="Layers as CUDA graphs",
    keys=(KEY,),
    costs="memory for one layer's work, which nothing else may use, and up to a 16th more tokens in packs",
    decide=_decide,
    fields=("cuda_graphs",),
    more=_recorded,
    spending=Spending(
        _recorded_packs,
        lambda values: (
            "memory is left: rows in packs, whose layers are recorded and launched as one; the processor is "
            "slower than the card"
        ),
        is_division=True,
        is_alone=True,
    ),
    # A checkpoint holds a place in one order of the rows, and no graphs; packs of another length round otherwise.
    on_resume=OnResume.FREE,
    rounds=True,
)
