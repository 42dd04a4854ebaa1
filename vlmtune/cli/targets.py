"""The card that a command estimates for: the one named, the GPU of this machine, or one of the preset's size."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vlmtune.units import GIB

if TYPE_CHECKING:
    from vlmtune.hardware.cards import Target

HERE = "here"
DEFAULT_SIZE = "8gb"
Platform = Literal["headless", "linux", "windows"]

GpuOption = Annotated[
    str | None,
    typer.Option(
        help="A card such as rtx-4060, a size such as 8gb, or `here`. Default: the GPU here; where there is none, "
        "a card of the preset's size.",
        show_default=False,
    ),
]
PlatformOption = Annotated[
    Platform | None, typer.Option(help="What else runs on the card. Default: linux.", show_default=False)
]
ReserveOption = Annotated[
    float | None,
    typer.Option(min=0, help="Left to other programs. Default: by platform; here, what they use.", show_default=False),
]


@dataclass(frozen=True)
class ChosenCard:
    """A card to estimate for, and why it is this one."""

    target: "Target"
    card_from: str
    """`--gpu`, `the GPU here` or `preset 8gb`."""
    budget_from: str
    """What the budget is made of."""


def choose_target(
    gpu: str | None, preset: str | None, platform: Platform | None, reserve_gib: float | None
) -> ChosenCard:
    """Return the card that the options mean; a named one is looked up before torch is imported.

    Raises:
        VlmtuneError: no such card, or `here` without a GPU.
    """
    reserve_bytes = None if reserve_gib is None else int(reserve_gib * GIB)
    if gpu is None and _gpu_is_here() or gpu == HERE:
        return _at_hand(platform, reserve_bytes)
    return _from_table(gpu, preset, platform or "linux", reserve_bytes)


def _gpu_is_here() -> bool:
    """Return whether torch can use a GPU; torch is imported only where a driver is installed."""
    from vlmtune.hardware.sensors import has_driver

    if not has_driver():
        return False
    from vlmtune.workflow.start import start_on_gpu

    start_on_gpu()
    import torch

    return torch.cuda.is_available()


def _at_hand(platform: Platform | None, reserve_bytes: int | None) -> ChosenCard:
    from vlmtune.workflow.start import start_on_gpu

    start_on_gpu()
    from vlmtune.hardware.at_hand import target_at_hand

    target = target_at_hand(platform, reserve_bytes)
    reserved = f", {reserve_bytes / GIB:.2f} left free" if reserve_bytes else ""
    total = target.card.total_bytes_linux / GIB
    return ChosenCard(
        target,
        "the GPU here",
        f"{target.budget_bytes / GIB:.2f} GiB of {total:.2f} can be reserved at this moment{reserved}",
    )


def _from_table(gpu: str | None, preset: str | None, platform: Platform, reserve_bytes: int | None) -> ChosenCard:
    from vlmtune.hardware.cards import budget_bytes, default_reserve_bytes, find_card

    card = find_card(gpu or preset or DEFAULT_SIZE)
    if reserve_bytes is None:
        reserve_bytes = default_reserve_bytes(card, platform)
    budget = budget_bytes(card, platform, reserve_bytes)

    from vlmtune.engine.runtime import prepare_environment

    prepare_environment()
    from vlmtune.hardware.cards import Target

    why = "--gpu" if gpu else f"preset {preset}" if preset else f"no GPU here, no preset: {DEFAULT_SIZE}"
    total, context, reserve = (size / GIB for size in (card.total_bytes(platform), card.context_bytes, reserve_bytes))
    return ChosenCard(
        Target(card, budget, expandable_segments=platform != "windows"),
        why,
        f"{budget / GIB:.2f} GiB = {total:.2f} of the card - {context:.2f} CUDA context - {reserve:.2f} others",
    )
