"""Pictures that a processor refuses by their sizes: asked of few sizes, for all of them.

Processors refuse what is too narrow, too flat or too small. So sizes are asked from the outermost inwards, by each way
in which they can be extreme, until one is taken: those further in are taken too. Very thin ones are all asked, because
an edge of few pixels can be taken for colour channels.
"""

from collections.abc import Callable, Sequence

from PIL import Image
from transformers import ProcessorMixin

from vlmtune.data.encode import encode
from vlmtune.data.fit.enlarged import enlarged_beyond
from vlmtune.data.images import shrunk_size_px
from vlmtune.data.measure.counting import PROBE
from vlmtune.errors import VlmtuneError
from vlmtune.families.base import Family

Size = tuple[int, int]
THIN_PX = 4
"""Up to this width or height every size is asked."""
ORDERS: tuple[Callable[[Size], float], ...] = (
    lambda size_px: size_px[0] / size_px[1],
    lambda size_px: size_px[1] / size_px[0],
    lambda size_px: -min(size_px),
    lambda size_px: -max(size_px),
)
"""Ways to be extreme: the higher, the more."""


def refused_sizes(
    sizes_px: Sequence[Size], processor: ProcessorMixin, family: Family, image_size: int | None
) -> dict[int, str]:
    """Return why the processor refuses pictures of some sizes, by their places in `sizes_px`; shrunk as in training."""
    shrunk_px = [shrunk_size_px(size_px, image_size) for size_px in sizes_px]
    answers: dict[Size, str | None] = {}

    def refusal(size_px: Size) -> str | None:
        if size_px not in answers:
            answers[size_px] = _refusal(size_px, processor, family)
        return answers[size_px]

    different = set(shrunk_px)
    for size_px in different:
        if min(size_px) <= THIN_PX:
            refusal(size_px)
    for order in ORDERS:
        if not different or refusal(max(different, key=order)) is None:  # as usual: nothing needs to be sorted
            continue
        for size_px in sorted(different, key=order, reverse=True):
            if refusal(size_px) is None:
                break
    return {place: why for place, size_px in enumerate(shrunk_px) if (why := answers.get(size_px))}


def _refusal(size_px: Size, processor: ProcessorMixin, family: Family) -> str | None:
    if problem := enlarged_beyond(size_px, processor):
        return problem
    try:
        encode(PROBE, [Image.new("RGB", size_px)], processor, family)
    except VlmtuneError as error:
        return error.message.removeprefix(f"{PROBE.where}: ")
    return None
