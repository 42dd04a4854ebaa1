"""What `vlmtune guide` says: the shapes of its tables. No torch here."""

from dataclasses import dataclass

from vlmtune.estimate.report import MemoryReport
from vlmtune.estimate.search.explain import Priced


@dataclass(frozen=True)
class Point:
    """The preset with one knob at one value."""

    value: int
    words: tuple[str, ...]
    adapter_bytes: int
    tokens: int
    """Of the largest row, its image included."""
    peak_bytes: int
    change_bytes: int
    """Against the preset."""
    fits: bool


@dataclass(frozen=True)
class PricedLever:
    """One lever with what it costs in words; none where it takes memory for speed or exactness."""

    lever: Priced
    reason: str | None


@dataclass(frozen=True)
class Named:
    """One of the founding guide's models on the card."""

    model: str
    parameters: int
    download_bytes: int
    peak_bytes: int
    """At the preset as it is."""
    fits: bool
    words: tuple[str, ...]
    """What makes it fit, or everything that can be given up; empty where the preset fits."""
    least_bytes: int
    """The peak with these words."""
    fits_so: bool
    fits_headless: bool
    """On the same card without a desktop, with these words."""
    card_size: str | None
    """The smallest size of card that holds it with these words."""


@dataclass(frozen=True)
class FittingModel:
    """A model of the catalogue that fits."""

    model: str
    parameters: int
    licence: str
    image_tokens: int
    peak_bytes: int


@dataclass(frozen=True)
class Advice:
    """What common advice is checked with."""

    upcast_bytes: int
    """Weights that are not 4-bit, once more: what they take in fp32 beyond 16 bits."""
    logits_bytes: int
    """One fp32 copy of the logits of the largest row."""
    vocabulary: int
    named_head_saved_bytes: int
    """What a 4-bit head saves of Qwen-VL-Chat at the preset; negative where it costs."""


@dataclass(frozen=True)
class CardSpeed:
    """How fast a card is predicted to tune the model at the preset, all rows as large as it allows."""

    key: str
    name: str
    rows_per_s: float
    relative: float
    """Against the slowest of the cards."""


@dataclass(frozen=True)
class Guide:
    """Everything in the guide."""

    model: str
    gpu: str
    gpu_name: str
    preset: str
    budget_bytes: int
    base: MemoryReport
    methods: dict[str, MemoryReport]
    parts: dict[str, dict[str, int]]
    """By method: bytes of each of KINDS, and what is left of the reserved peak; they sum to it."""
    ranks: tuple[Point, ...]
    lengths: tuple[Point, ...]
    images: tuple[Point, ...]
    """Empty where `data.image_size` has no effect."""
    savings: tuple[PricedLever, ...]
    """In the order in which they are given up."""
    spendings: tuple[PricedLever, ...]
    """The dearest first."""
    choices: tuple[FittingModel, ...]
    num_fitting: int
    named: tuple[Named, ...]
    advice: Advice
    speeds: tuple[CardSpeed, ...] = ()
    """The fastest first."""
