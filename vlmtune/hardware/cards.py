"""NVIDIA cards and what they give to PyTorch, read from cards.yaml. No torch: `--gpu` is checked before it loads."""

import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from vlmtune.errors import VlmtuneError
from vlmtune.units import MIB

TABLE = Path(__file__).with_name("cards.yaml")
NAMES_SHOWN = 4
SAME_SIZE_WITHIN = 1 / 8
FROM_THE_DRIVER = "the driver of this machine"

Platform = Literal["headless", "linux", "windows"]


@dataclass(frozen=True)
class Card:
    """One kind of card. `sources` says where each figure comes from, by field name."""

    key: str
    name: str
    """As the driver reports it; sizes such as `8gb` name the card they stand for."""
    sm: tuple[int, int]
    """Compute capability."""
    num_sms: int
    nominal_bytes: int
    """What the box says."""
    total_bytes_linux: int
    """torch's `total_memory` there."""
    total_bytes_windows: int
    """The same on Windows and WSL."""
    context_bytes: int
    """What the process takes outside of PyTorch's allocator."""
    bandwidth_gb_s: float | None
    """None for a card that is not in the table."""
    bf16_tflops: float | None
    """Dense; of fp16 where the card computes no bf16. None for a card that is not in the table."""
    fp32_tflops: float | None
    """Without tensor cores. None for a card that is not in the table."""
    host_gb_s: float | None
    """From main memory over its bus, each way. None for a card that is not in the table."""
    has_display: bool
    sources: dict[str, str]
    cublas_forward_bytes: tuple[int, ...] | None = None
    """Blocks that the first matrix product of the forward pass keeps, as measured; None: by architecture."""
    cublas_backward_bytes: tuple[int, ...] | None = None
    """The same of the backward pass."""
    plain_launch_s: float | None = None
    """What the processor takes for a kernel that torch launches by itself, as measured on this machine; None: nobody
    did."""

    def total_bytes(self, platform: Platform) -> int:
        """The memory of the card as torch reports it on the platform."""
        return self.total_bytes_windows if platform == "windows" else self.total_bytes_linux


@dataclass(frozen=True)
class Target:
    """The card that an estimate is for."""

    card: Card
    budget_bytes: int
    expandable_segments: bool
    main_memory_bytes: int | None = None
    """What the run may take of main memory beside the card; None where that is another machine's, or nobody tells."""
    no_triton: str | None = None
    """Why Triton cannot make kernels on its machine; None where it can, or where that is another machine."""


def cards() -> tuple[Card, ...]:
    """Every card of the table, in its order; the sizes such as `8gb` are not among them."""
    return tuple(_cards().values())


def sizes() -> tuple[str, ...]:
    """The sizes that stand for a card, smallest first."""
    return tuple(_table()["sizes"])


def standing_for(size: str) -> Card:
    """Return the card that stands for a size such as `8gb`."""
    return _cards()[_table()["sizes"][size]]


def find_card(text: str) -> Card:
    """The card of a key (`rtx-4060`), of the driver's name (`NVIDIA GeForce RTX 4060`) or of a size (`8gb`).

    One name may stand for cards of several sizes: the smallest is returned, since what fits there fits the others.

    Raises:
        VlmtuneError: no such card; the hint lists near ones.
    """
    word = _plain(text)
    if word in _table()["sizes"]:
        card = standing_for(word)
        return replace(card, key=word, name=f"{word.removesuffix('gb')} GB card, as {card.name}")
    by_name = _keys_by_name()
    joined = {name.replace("-", ""): key for name, key in by_name.items()}
    for name in (word.replace("-", ""), f"rtx{word}".replace("-", "")):
        if name in joined:
            return _cards()[joined[name]]
    near = get_close_matches(word, [*by_name, *sizes()], n=NAMES_SHOWN, cutoff=0.6)
    near += [name for name in by_name if word and word in name and name not in near][:NAMES_SHOWN]
    did_you_mean = f"did you mean {', '.join(near[:NAMES_SHOWN])}? " if near else ""
    raise VlmtuneError(
        f"no card is known as {text[:60]!r}",
        f"{did_you_mean}give a name such as rtx-4060 or rtx-3060-12gb, or a size: {', '.join(sizes())}",
    )


def card_of_driver(name: str, sm: tuple[int, int], num_sms: int, total_bytes: int) -> Card:
    """The card that the driver describes: what it does not say is the table's, by name and size, or assumed.

    Args:
        total_bytes: as torch reports it.
    """
    read = ("sm", "num_sms", "total_bytes_linux", "total_bytes_windows")
    sizes_read = {"sm": sm, "num_sms": num_sms, "total_bytes_linux": total_bytes, "total_bytes_windows": total_bytes}
    sources = dict.fromkeys(read, FROM_THE_DRIVER)
    near = [card for card in cards() if _plain(name) in _names(card) and _same_size(card.nominal_bytes, total_bytes)]
    if near:
        card = min(near, key=lambda card: abs(card.total_bytes_linux - total_bytes))
        return replace(card, **sizes_read, sources=card.sources | sources)
    context_bytes, context_source = _assumed_context(".".join(map(str, sm)), num_sms, _table()["assumed"])
    return Card(
        key=_plain(name),
        name=name,
        **sizes_read,
        nominal_bytes=-(-total_bytes // 1024**3) * 1024**3,
        context_bytes=context_bytes,
        bandwidth_gb_s=None,
        bf16_tflops=None,
        fp32_tflops=None,
        host_gb_s=None,
        has_display=True,
        sources=sources | {"context_bytes": context_source},
    )


def _same_size(nominal_bytes: int, total_bytes: int) -> bool:
    return abs(nominal_bytes - total_bytes) < nominal_bytes * SAME_SIZE_WITHIN


def default_reserve_bytes(card: Card, platform: Platform) -> int:
    """What is left to the desktop and other programs unless the user says otherwise; nothing without a display."""
    return _table()["reserves_mib"][platform] * MIB if card.has_display else 0


def budget_bytes(card: Card, platform: Platform, reserve_bytes: int | None = None) -> int:
    """What PyTorch may reserve: the card's total less the CUDA context and the reserve (None: the platform's own)."""
    if reserve_bytes is None:
        reserve_bytes = default_reserve_bytes(card, platform)
    return max(0, card.total_bytes(platform) - card.context_bytes - reserve_bytes)


@cache
def _table() -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(TABLE.read_text(encoding="utf-8"), loader)


@cache
def _cards() -> dict[str, Card]:
    return {key: _card(key, row, _table()["assumed"]) for key, row in _table()["cards"].items()}


def _card(key: str, row: dict[str, Any], assumed: dict[str, Any]) -> Card:
    linux_mib = row.get("linux_mib") or row["nvidia_smi_mib"] - assumed["driver_mib"]
    context_bytes, context_source = _assumed_context(row["sm"], row["num_sms"], assumed)
    if "context_mib" in row:
        context_bytes, context_source = row["context_mib"] * MIB, row["context_source"]
    major, minor = row["sm"].split(".")
    return Card(
        key=key,
        name=row["name"],
        sm=(int(major), int(minor)),
        num_sms=row["num_sms"],
        nominal_bytes=row["nominal_gib"] * 1024**3,
        total_bytes_linux=linux_mib * MIB,
        total_bytes_windows=row.get("nvidia_smi_mib", linux_mib) * MIB,
        context_bytes=context_bytes,
        bandwidth_gb_s=row["bandwidth_gb_s"],
        bf16_tflops=row["bf16_tflops"],
        fp32_tflops=row["bf16_tflops"] * row.get("fp32_share", assumed["fp32_share"][row["sm"]]),
        host_gb_s=row.get("host_gb_s", assumed["host_gb_s"][row["sm"]]),
        has_display=row.get("display", True),
        sources=_sources(row, assumed) | {"context_bytes": context_source},
    )


def _assumed_context(sm: str, num_sms: int, assumed: dict[str, Any]) -> tuple[int, str]:
    """What the process is taken to need outside of PyTorch's allocator, and the words for how it is known."""
    by_sm = assumed["context_mib_per_sm"]
    mib_per_sm = by_sm.get(sm, max(by_sm.values()))
    context_mib = max(assumed["context_least_mib"], round(mib_per_sm * num_sms))
    return context_mib * MIB, f"assumed: {mib_per_sm} MiB a multiprocessor"


def _sources(row: dict[str, Any], assumed: dict[str, Any]) -> dict[str, str]:
    vendor = "NVIDIA's specifications, not checked"
    return {
        "num_sms": vendor,
        "total_bytes_linux": row.get("linux_source", f"assumed: nvidia-smi less {assumed['driver_mib']} MiB"),
        "total_bytes_windows": "nvidia-smi" if "nvidia_smi_mib" in row else "assumed: as on Linux",
        "bandwidth_gb_s": vendor,
        "bf16_tflops": vendor,
        "fp32_tflops": "NVIDIA's architecture: lanes beside tensor cores",
        "host_gb_s": "PCI Express, by generation and lanes",
    }


@cache
def _keys_by_name() -> dict[str, str]:
    """Every name that a card goes by, as `_plain` writes it; of cards with the same name the smallest one's key."""
    found: dict[str, str] = {}
    for card in sorted(cards(), key=lambda card: card.total_bytes_linux):
        for name in _names(card):
            found.setdefault(name, card.key)
    return found | {key: key for key in _cards()}


def _names(card: Card) -> list[str]:
    """Every name that the driver may report for a card of the table, as `_plain` writes it."""
    return [_plain(name) for name in (card.name, *_table()["cards"][card.key].get("other_names", ()))]


def _plain(text: str) -> str:
    """The text in the form of keys: `NVIDIA GeForce RTX 4060 Laptop GPU` becomes `rtx-4060-laptop`."""
    word = re.sub(r"\b(nvidia|geforce|tesla|gpu|generation)\b", " ", text.lower())
    word = re.sub(r"(\d)\s*gi?b?\b", r"\1gb", word)
    return "-".join(re.findall(r"[a-z0-9]+", word))
