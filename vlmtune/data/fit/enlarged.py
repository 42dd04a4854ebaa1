"""Pictures that a processor would enlarge beyond memory: 60,000×1 pixels become 184 GB where 1 is made 336."""

from transformers import ProcessorMixin

MOST_PX = 178_956_970
"""Of a picture that a processor enlarges: as many as a picture may have (Pillow's bound), half a GiB and copies."""


def enlarged_beyond(size_px: tuple[int, int], processor: ProcessorMixin) -> str | None:
    """Return what a processor would make of a picture of this size, in words; None where it is no more than it may."""
    enlarged_px = _enlarged_px(size_px, processor)
    if enlarged_px <= MOST_PX:
        return None
    return f"the processor brings its shorter side to a fixed length, which makes {enlarged_px:,} pixels of it"


def _enlarged_px(size_px: tuple[int, int], processor: ProcessorMixin) -> int:
    """Return the pixels of a picture whose shorter side is brought to a fixed length, as LLaVA's are before the cut."""
    size = processor.image_processor.to_dict().get("size") or {}
    if size.get("longest_edge") or not size.get("shortest_edge"):
        return 0
    return size["shortest_edge"] ** 2 * max(size_px) // min(size_px)
