"""Several GPUs: each trains on its share of a step's rows, and their gradients are added up (engine/ranks)."""

from typing import TYPE_CHECKING

from vlmtune.config.schema import TrainingConfig
from vlmtune.errors import VlmtuneError
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.base import Choice, Decision, Lever, OnResume

if TYPE_CHECKING:
    from vlmtune.plan.types import Device

KEY = "hardware.num_gpus"


def num_gpus(config: TrainingConfig, device: "Device") -> int:
    """Return how many GPUs train together.

    Raises:
        VlmtuneError: there are fewer, or a launcher has started another number.
    """
    wish, there = config.hardware.num_gpus, device.num_gpus
    if device.launched:
        if wish not in (None, "auto", there):
            raise VlmtuneError(
                f"{KEY}: {wish}, and the launcher has started {there} processes",
                f"make them equal, or leave {KEY} out: a launcher's number counts then",
            )
        return there
    if wish == "auto":
        return there or 1
    if wish is not None and there is not None and wish > max(1, there):
        found = f"{there} {'is' if there == 1 else 'are'} here" if device.kind == "cuda" else "none was found"
        raise VlmtuneError(
            f"{KEY}: {wish} GPUs are asked for, {found}", f"{KEY}: auto takes those that CUDA_VISIBLE_DEVICES shows"
        )
    return wish or 1


def _decide(config: TrainingConfig, model: ModelFacts, device: "Device") -> Decision:
    number = num_gpus(config, device)
    if number == 1 or config.hardware.num_gpus == number:
        return Decision({"num_gpus": number})
    reason = "as many as the launcher has started" if device.launched else "all that are here"
    return Decision({"num_gpus": number}, (Choice(KEY, str(number), f"{reason}; as many rows a step"),))


GPUS = Lever(
    name="Several GPUs",
    keys=(KEY,),
    costs="a sum of the adapters' gradients once a step; buys time",
    decide=_decide,
    fields=("num_gpus",),
    on_resume=OnResume.FREE,
)
