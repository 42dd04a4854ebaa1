"""What a lever is: one way to trade memory, time and exactness, and all that vlmtune knows of it, in one file.

The plan, the price list of `--explain`, the search for a config that fits, the retry after running out of memory, the
guide, docs/levers.md, the rule for resumed runs and the model builder read these objects and nothing else. A lever's
YAML keys and their meaning stand in config/schema.py, what it decided in plan/types.py: there they are looked for.

No torch here: what acts on a model imports it when it acts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any, Protocol

from vlmtune.config.schema import TrainingConfig
from vlmtune.config.values import Values
from vlmtune.families.base import Family
from vlmtune.families.facts import ModelFacts

if TYPE_CHECKING:
    from torch import nn

    from vlmtune.plan.types import Device, RunPlan


class GivesUp(IntEnum):
    """What a saving costs, in the order in which savings are taken: first what costs nothing that is learned.

    Of the latter the rank goes first, down to 4: with adapters on every linear layer, as here, QLoRA's authors saw no
    effect of the rank on the result, and LoRA's saw none of ranks from 4 to 64. Then the length of texts, down to 256,
    which changes only the rows that are longer. Then the size of images, which takes detail from every row. Texts
    shorter than that are the last resort.
    """

    TIME = 0
    """The result is the same."""
    OPTIMIZER_ROUNDING = 1
    FULL_TUNING = 2
    BASE_ROUNDING = 3
    TOWER_ROUNDING = 4
    HEAD_ROUNDING = 5
    RANK = 6
    LONG_TEXTS = 7
    IMAGE_DETAIL = 8
    SHORT_TEXTS = 9


class OnResume(Enum):
    """When a run may still change the lever."""

    FREE = "at any checkpoint"
    UNTIL_CHECKPOINT = "until the first checkpoint"
    """A checkpoint holds one optimizer's states, and a place in one order of the rows, which follows their lengths."""
    PINNED = "never: it decides the result"


@dataclass(frozen=True)
class Choice:
    """A value that the plan decided or changed, and why."""

    key: str
    value: str
    reason: str


@dataclass(frozen=True)
class Decision:
    """What a lever becomes in one plan."""

    values: dict[str, Any]
    """Field of RunPlan → value; tuples that several levers give for one field are joined."""
    choices: tuple[Choice, ...] = ()


class RowFacts(Protocol):
    """What a plan may ask of the rows it is made for."""

    @property
    def num_rows(self) -> int:
        """Rows to train on."""

    @property
    def num_images(self) -> int:
        """Images of all of them, and of those held out."""

    def image_tokens(self, plan: "RunPlan", model: ModelFacts) -> int:
        """Return the tokens of all images, as the plan sets the model's processor."""

    def free_cache_bytes(self) -> int | None:
        """Return what may be written into the cache folder; None where it cannot be written."""


# What is held at a peak, by how the names of its parts begin (`breakdown` of an estimate).
TOWER = ("weights: vision", "weights: projector")
LAYERS = ("weights: text",)
HEAD = ("weights: head",)
UNPACKED = ("dequantised weights", "workspaces")
KEPT = ("saved activations", "recomputation")
WORK = (*KEPT, "logits and loss", "gradients", "inputs", *UNPACKED)
"""What a pass makes: the gradients of activations count as gradients."""
LEARNING = ("adapters:", "gradients", "optimizer")
PARTS = (*TOWER, *LAYERS, *HEAD, "weights: other", *LEARNING, *WORK)


@dataclass(frozen=True)
class Saving:
    """One way to spend less memory."""

    gives_up: GivesUp
    reason: str
    """What it costs, for people."""
    steps: Callable[[TrainingConfig, ModelFacts | None, int], list[Values]]
    """(config, model, text tokens of the longest row) -> ever stronger versions; none where it does not apply."""
    spares: tuple[str, ...] = PARTS
    """What of a peak it can lower at all: beside the rest of a peak that is too large it need not be simulated."""
    is_even: bool = False
    """Whether each step saves as much as the one before it, so that two of them tell of those between."""
    may_cost_memory: bool = False
    """Whether a run that does not fit may need even more with it."""
    priced: Callable[[list[Values]], list[Values]] = lambda steps: steps[:1]
    """Those of the steps that stand in price lists."""


@dataclass(frozen=True)
class Spending:
    """How memory that is left buys speed."""

    levels: Callable[[TrainingConfig, ModelFacts, int], list[Values]]
    """(config, model, tokens of the longest row) -> ever more memory spent, the first the least; none: not now."""
    reason: Callable[[Values], str]
    """What a level buys, for people."""
    is_division: bool
    """Whether a level says how the rows of a step are divided: each is a way of its own, filled with what else memory
    buys. Else the last level is tried first, and those between are looked for."""
    is_alone: bool = False
    """Of a division: whether nothing else is bought beside it, and it takes memory of which its tokens do not tell."""


def _nothing(config: TrainingConfig, model: ModelFacts | None) -> list:
    return []


def _not_asked(config: TrainingConfig, model: ModelFacts, plan: "RunPlan", rows: RowFacts) -> None:
    return None


def _no_change(model: "nn.Module", plan: "RunPlan", family: Family) -> None:
    return None


def _nothing_held(model: "nn.Module", plan: "RunPlan", family: Family, batch_tokens: int) -> int:
    return 0


@dataclass(frozen=True)
class Lever:
    """One lever."""

    name: str
    keys: tuple[str, ...]
    """Keys of the config that it owns."""
    costs: str
    """What it trades for what, in the user's words."""
    decide: Callable[[TrainingConfig, ModelFacts, "Device"], Decision]
    """(config, model, device) -> plan values. VlmtuneError: the wish cannot be granted."""
    by_rows: Callable[[TrainingConfig, ModelFacts, "RunPlan", RowFacts], Decision | None] = _not_asked
    """(config, model, plan so far, rows) -> what is decided otherwise for these rows; None: nothing."""
    fields: tuple[str, ...] = ()
    """Fields of RunPlan that it alone decides; a change of them on resume is judged by `on_resume`."""
    savings: tuple[Saving, ...] = ()
    spending: Spending | None = None
    more: Callable[[TrainingConfig, ModelFacts | None], list[Values]] = _nothing
    """(config, model) -> versions that take more memory and give speed or exactness for it, for price lists."""
    on_resume: OnResume = OnResume.PINNED
    same_result: Callable[["RunPlan", "RunPlan"], bool] = lambda begun, now: True
    """(plan begun, plan now) -> whether a free lever leaves the result the same; asked on resume."""
    excludes: Callable[[TrainingConfig], list[str]] = field(default=lambda config: [])
    """config -> why it cannot be pulled beside others, each `key: reason`; empty where nothing stands against it."""
    rounds: bool = False
    """Whether it rounds otherwise what no saving of its own says so of."""
    apply: Callable[["nn.Module", "RunPlan", Family], None] = _no_change
    """(base model with its adapters, plan, family) -> None: what it does to a model, with storage or without."""
    main_memory_bytes: Callable[["nn.Module", "RunPlan", Family, int], int] = _nothing_held
    """(base model with its adapters, plan, family, tokens of the largest batch) -> what it keeps in main memory beside
    the card, pinned or not, for as long as the run lasts."""
    main_memory_is_mapped: bool = False
    """Whether that is pages of the model's files wherever these have the run's number format."""

    @property
    def exact(self) -> bool:
        """Whether it costs nothing but time or disk: the result is the same."""
        return not self.rounds and all(saving.gives_up is GivesUp.TIME for saving in self.savings)
