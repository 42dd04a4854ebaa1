"""What each lever is worth for one plan, by simulating the plan with it: bytes saved, and the work that it adds."""

from collections.abc import Callable
from dataclasses import dataclass

from vlmtune.config.schema import TrainingConfig
from vlmtune.errors import VlmtuneError
from vlmtune.estimate.run import MemoryReport

SMALLEST_RANK = 4
SMALLEST_TEXT_TOKENS = 64
SMALLEST_IMAGE_PX = 112


@dataclass(frozen=True)
class Lever:
    """One change of a config, priced."""

    words: tuple[str, ...]
    """What to give to `--set`."""
    saved_bytes: int
    """Of the reserved peak; negative when the change costs memory."""
    work: float
    """Floating-point operations a row, as a multiple of before: the slowdown of a card that is busy computing."""
    fits: bool


def price_levers(
    config: TrainingConfig, before: MemoryReport, estimate: Callable[[tuple[str, ...]], MemoryReport]
) -> list[Lever]:
    """Return every lever that applies to `config`, the largest saving first; `estimate` takes `--set` words."""
    priced = []
    for words in levers(config):
        try:
            after = estimate(words)
        except VlmtuneError:  # such as rows that no longer fit into max_length: no lever for these rows
            continue
        saved = before.peak_reserved_bytes - after.peak_reserved_bytes
        priced.append(Lever(words, saved, after.flops_per_row / before.flops_per_row, after.fits))
    return sorted(priced, key=lambda lever: -lever.saved_bytes)


def levers(config: TrainingConfig) -> list[tuple[str, ...]]:
    """Return the `--set` words of every change that applies to `config`."""
    training, data = config.training, config.data
    rows_per_step = training.batch_size * training.gradient_accumulation_steps
    image_px = (data.image_size or 1024) * 3 // 4
    adapters = training.method != "full"
    found = [
        (True, (f"hardware.gradient_checkpointing={_word(not config.hardware.gradient_checkpointing)}",)),
        (
            training.batch_size > 1,
            ("training.batch_size=1", f"training.gradient_accumulation_steps={rows_per_step}"),
        ),
        (adapters and training.lora.rank > SMALLEST_RANK, (f"training.lora.rank={training.lora.rank // 2}",)),
        (data.max_length > SMALLEST_TEXT_TOKENS, (f"data.max_length={data.max_length // 2}", "data.truncation=cut")),
        (image_px > SMALLEST_IMAGE_PX, (f"data.image_size={image_px}",)),
        (training.method == "lora", ("training.method=qlora",)),
        (training.method == "full", ("training.method=lora",)),
        (
            training.method == "qlora",
            ("training.quantization.quantize_vision_tower=" + _word(not training.quantization.quantize_vision_tower),),
        ),
        *((training.optim != name, (f"training.optim={name}",)) for name in ("adamw", "adamw_8bit")),
    ]
    return [words for applies, words in found if applies]


def _word(value: bool) -> str:
    return str(value).lower()
