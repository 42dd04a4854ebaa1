"""Recompute: activations of the language model's first layers are computed twice instead of kept.

One step further, what those layers start from, all that is kept of them, waits in main memory for the backward pass.
"""

from typing import TYPE_CHECKING

from vlmtune.compat import transformers as borrowed
from vlmtune.config.schema import TrainingConfig
from vlmtune.config.values import Values, not_yet
from vlmtune.errors import VlmtuneError
from vlmtune.families.base import Family
from vlmtune.families.facts import ModelFacts
from vlmtune.hardware.main_memory import pinned_block_bytes
from vlmtune.levers.base import KEPT, Choice, Decision, GivesUp, Lever, OnResume, Saving, Spending

if TYPE_CHECKING:
    from torch import nn

    from vlmtune.plan.types import Device, RunPlan

ON, LAYERS = "hardware.gradient_checkpointing", "hardware.checkpointed_layers"
OFFLOAD = "hardware.offload_activations"


def _decide(config: TrainingConfig, model: ModelFacts, device: "Device") -> Decision:
    hardware, choices = config.hardware, ()
    if hardware.offload_activations and device.kind == "cpu":
        choices = (Choice(OFFLOAD, "false", "training runs on the CPU: everything is in main memory"),)
    return Decision(
        {
            "gradient_checkpointing": hardware.gradient_checkpointing,
            "checkpointed_layers": _layers(hardware.checkpointed_layers, model),
            "offload_activations": hardware.offload_activations and not choices,
        },
        choices,
    )


def _layers(wish: int | None, model: ModelFacts) -> int | None:
    if wish is None:
        return None
    if wish > model.num_layers:
        raise VlmtuneError(
            f"{LAYERS}: {wish} are wanted, but the language model of {model.name} has {model.num_layers} layers",
            "leave it out to recompute all of them",
        )
    return wish if wish < model.num_layers else None


def keep_all() -> Values:
    """Return the values with which no layer recomputes."""
    return {ON: False, LAYERS: None, OFFLOAD: False}


def recompute_first(num_layers: int | None) -> Values:
    """Return the values with which the language model's first layers recompute from what is on the card; None: all."""
    return {ON: True, LAYERS: num_layers, OFFLOAD: False}


def _offload(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    offloads = config.hardware.offload_activations and config.hardware.checkpointed_layers is None
    return [] if offloads else [not_yet(config, {ON: True, LAYERS: None, OFFLOAD: True})]


def _all_layers(config: TrainingConfig, model: ModelFacts | None, text_tokens: int) -> list[Values]:
    hardware = config.hardware
    if hardware.gradient_checkpointing and hardware.checkpointed_layers is None:
        return []
    return [not_yet(config, {ON: True, LAYERS: None})]


def _fewer_layers(config: TrainingConfig, model: ModelFacts, tokens: int) -> list[Values]:
    """First nothing that waits in main memory; then ever fewer layers that recompute, at last none."""
    hardware = config.hardware
    if not hardware.gradient_checkpointing:
        return []
    same = [recompute_first(hardware.checkpointed_layers)] if hardware.offload_activations else []
    recomputing = hardware.checkpointed_layers or model.num_layers
    return [*same, *(recompute_first(number) for number in range(recomputing - 1, 0, -1)), keep_all()]


def _bought(values: Values) -> str:
    if not values[ON]:
        return "memory is left: every activation is kept, so that none is computed twice"
    if values[LAYERS] is None:
        return "memory is left: what layers recompute from stays on the card"
    return (
        f"memory is left: layer {values[LAYERS] + 1} and those after it keep their activations, "
        "which saves computing them twice"
    )


def _more(config: TrainingConfig, model: ModelFacts | None) -> list[Values]:
    if not config.hardware.gradient_checkpointing:
        return []
    few = (config.hardware.checkpointed_layers or model.num_layers) // 2 if model else 0
    stays = [{OFFLOAD: False}] if config.hardware.offload_activations else []
    return [*stays, keep_all(), *([recompute_first(few)] if few > 0 else [])]


def _apply(model: "nn.Module", plan: "RunPlan", family: Family) -> None:
    """Recompute layer by layer, and take back the hook that transformers adds with it.

    The hook makes the input embeddings of every nested model require gradients, the frozen tower's patch embedding
    included, and so drags the whole tower through the backward pass. Non-reentrant checkpointing does not need it.
    """
    if not plan.gradient_checkpointing:
        return
    # Without dropout the recomputation draws no random numbers: keeping their state costs a quarter of a forward pass.
    settings = {"use_reentrant": False, "preserve_rng_state": _has_dropout(model, family)}
    borrowed.CHECKPOINTING_ENABLE.read(model)(settings, offload=plan.offload_activations)
    model.disable_input_require_grads()
    _keep_activations(model, plan, family)


def _keep_activations(model: "nn.Module", plan: "RunPlan", family: Family) -> None:
    """Let the language model's layers from `plan.checkpointed_layers` on keep their activations.

    The last layers, not the first: the backward pass frees theirs while most gradients do not exist yet.
    """
    if plan.checkpointed_layers is None:
        return
    for layer in layers_of(model, family)[plan.checkpointed_layers :]:
        layer.gradient_checkpointing = False


def layers_of(model: "nn.Module", family: Family) -> list["nn.Module"]:
    """Return the layers of the language model that can recompute, in their order."""
    kind = borrowed.GRADIENT_CHECKPOINTING_LAYER.get()
    return [module for module in model.get_submodule(family.text).modules() if isinstance(module, kind)]


def _waiting_bytes(model: "nn.Module", plan: "RunPlan", family: Family, batch_tokens: int) -> int:
    """Return what waits pinned when the last layer begins: what each layer that recomputes starts from."""
    if not plan.offload_activations:
        return 0
    weight = model.get_output_embeddings().weight
    hidden_bytes = batch_tokens * model.config.get_text_config().hidden_size * weight.element_size()
    return len(layers_of(model, family)[: plan.checkpointed_layers]) * pinned_block_bytes(hidden_bytes)


def _has_dropout(model: "nn.Module", family: Family) -> bool:
    """Return whether a forward pass in training mode draws random numbers."""
    from torch import nn

    learning = {family.part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    part, config = model, model.config
    if learning <= {"text", "head"}:  # the other parts rest
        part, config = model.get_submodule(family.text), model.config.get_text_config()
    modules = any(isinstance(module, nn.Dropout) and module.p > 0 for module in part.modules())
    return modules or any("dropout" in str(key) and value for key, value in _flat(config.to_dict()))


def _flat(config: dict):
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value)
        else:
            yield key, value


RECOMPUTE = Lever(
    name="Recompute activations",
    keys=(ON, LAYERS, OFFLOAD),
    costs="time: the forward pass of the layers that recompute, once more, and two copies over the bus",
    decide=_decide,
    fields=("gradient_checkpointing", "checkpointed_layers", "offload_activations"),
    savings=(
        Saving(
            GivesUp.TIME,
            "activations are computed twice instead of kept: the layers' forward pass once more, the same result",
            _all_layers,
            spares=KEPT,
        ),
        Saving(
            GivesUp.TIME,
            "what layers recompute from waits in main memory: two copies over the bus, the same result",
            _offload,
            spares=KEPT,
        ),
    ),
    spending=Spending(_fewer_layers, _bought, is_division=False),
    more=_more,
    on_resume=OnResume.FREE,
    apply=_apply,
    main_memory_bytes=_waiting_bytes,
)
