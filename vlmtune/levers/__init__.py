"""The levers: ways to trade memory, time and exactness, one file each. A new one is a file and a name in LEVERS."""

from vlmtune.config.schema import TrainingConfig
from vlmtune.config.values import Values, not_yet
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.base import Lever, Saving
from vlmtune.levers.batch import BATCH
from vlmtune.levers.embeddings import EMBEDDINGS
from vlmtune.levers.features import FEATURES_LEVER
from vlmtune.levers.gpus.number import GPUS
from vlmtune.levers.gpus.shard import SHARD
from vlmtune.levers.head import HEAD
from vlmtune.levers.image_size import IMAGE_SIZE
from vlmtune.levers.kept_base import KEPT_BASE
from vlmtune.levers.lora.lean import LEAN_LORA
from vlmtune.levers.lora.rank import LORA_RANK
from vlmtune.levers.method import METHOD
from vlmtune.levers.optimizer import OPTIMIZER
from vlmtune.levers.recompute import RECOMPUTE
from vlmtune.levers.speed.constants import CONSTANTS
from vlmtune.levers.speed.elementwise import ELEMENTWISE
from vlmtune.levers.speed.graphs import GRAPHS
from vlmtune.levers.speed.norms import NORMS
from vlmtune.levers.speed.packing import PACKING
from vlmtune.levers.speed.varlen import VARLEN
from vlmtune.levers.speed.widths import WIDTHS
from vlmtune.levers.streaming import STREAMING
from vlmtune.levers.text_length import TEXT_LENGTH
from vlmtune.levers.tower import TOWER

LEVERS: tuple[Lever, ...] = (
    EMBEDDINGS,
    RECOMPUTE,
    BATCH,
    GPUS,
    PACKING,
    VARLEN,
    WIDTHS,
    NORMS,
    ELEMENTWISE,
    CONSTANTS,
    GRAPHS,
    FEATURES_LEVER,
    SHARD,
    STREAMING,
    HEAD,
    TOWER,
    METHOD,
    LORA_RANK,
    TEXT_LENGTH,
    IMAGE_SIZE,
    OPTIMIZER,
    KEPT_BASE,
    LEAN_LORA,
)


def savings() -> list[tuple[Lever, Saving]]:
    """Return every saving with its lever, in the order in which they are given up."""
    found = [(lever, saving) for lever in LEVERS for saving in lever.savings]
    return sorted(found, key=lambda pair: pair[1].gives_up)


def more_memory(config: TrainingConfig, model: ModelFacts | None) -> list[Values]:
    """Return what takes more memory and gives speed or exactness for it."""
    return [not_yet(config, values) for lever in LEVERS for values in lever.more(config, model)]
