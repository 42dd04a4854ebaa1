"""The frozen tower's work, done once: every image is encoded before the language model loads, unless it was before."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from transformers import ProcessorMixin

from vlmtune.data import images, pictures
from vlmtune.data.features.encode import BytesOf, Missing, encode_into, files_of, free_card
from vlmtune.data.features.images import RowImages, row_images
from vlmtune.data.features.rows import RowFeatures
from vlmtune.data.features.store import FeatureStore, forget_abandoned, free_bytes, full_disk, make_room, not_writable
from vlmtune.data.progress import Progress
from vlmtune.data.types import Sample, count
from vlmtune.errors import VlmtuneError
from vlmtune.families.facts import ModelFacts
from vlmtune.files import code_sha256, file_sha256
from vlmtune.hub.source import ModelSource
from vlmtune.levers.features import BUDGET, KEY, budget_bytes_of, bytes_per_token
from vlmtune.models.build import build_tower, check_checkpoint, family_of
from vlmtune.models.features import tower_sha256
from vlmtune.plan.types import RunPlan
from vlmtune.units import GIB

LIBRARIES = ("torch", "torchvision", "transformers", "pillow")
FASTER = ("align_widths", "fused_norms", "fused_elementwise", "varlen_attention")
"""Fields of a plan with which features are not the same bits."""


@dataclass(frozen=True)
class Teller:
    """Who is told what the encoding does."""

    progress: Progress
    note: Callable[[str], None]


@dataclass(frozen=True)
class Share:
    """Which of the processes that encode images together this one is."""

    number: int = 0
    size: int = 1
    meet: Callable[[], None] = lambda: None
    """Returns when all have come to it."""


def features_of(
    plan: RunPlan,
    source: ModelSource,
    parts: Sequence[Sequence[Sample]],
    processor: ProcessorMixin,
    teller: Teller,
    share: Share = Share(),  # noqa: B008  nothing of it changes
) -> list[RowFeatures]:
    """Return the features of the images of each part's rows; those that are not on disk are made first.

    Processes that do this together make a share of the files each; whatever is missing then is made by whoever needs
    it, as where another run has written into the cache meanwhile.

    Raises:
        VlmtuneError: an image cannot be used, a file of the cache cannot be, the budget or the disk is too small, or
            the folder cannot be written; before anything is loaded.
    """
    images = [row_images(samples, plan.image_size, teller.progress) for samples in parts]
    store = FeatureStore(made_of(plan, source, processor))
    missing, bytes_of = _missing(images, store), _bytes_of(plan, source.facts(plan.model_name))
    if missing and share.number == 0:
        _prepare_disk(plan, bytes_of, images, missing, store, teller)
    share.meet()

    def encode(files: list[list[Missing]]) -> None:
        if not files:
            return
        try:
            with teller.progress("encoding images", sum(map(len, files))) as advance:
                encode_into(store, plan, files, processor, advance, teller.note)
        finally:
            free_card()

    encode(files_of(missing, bytes_of)[share.number :: share.size])
    share.meet()
    store.look()
    encode(files_of(_missing(images, store), bytes_of))
    return [RowFeatures(one, store, processor) for one in images]


def _missing(images: Sequence[RowImages], store: FeatureStore) -> list[Missing]:
    """Return each image without features once, those of one size behind each other: they share batches."""
    found = {
        digest: Missing(digest, tuple(one.sizes_px[number].tolist()), one, number)
        for one in images
        for number, digest in enumerate(one.digests)
        if digest not in store
    }
    return sorted(found.values(), key=lambda image: (image.size_px, image.digest))


def made_of(plan: RunPlan, source: ModelSource, processor: ProcessorMixin) -> str:
    """Return the digest of all that decides a feature besides the image: weights, formats, processor, libraries."""
    tower = build_tower(replace(plan, quant_type=None), weights="none")  # named as in the files
    quantised = [plan.quant_type, plan.double_quant, plan.unquantized] if plan.quant_type else []
    faster = [name for name in FASTER if getattr(plan, name)]
    libraries = [*LIBRARIES, *(["bitsandbytes"] if quantised else [])]
    decided_by = [
        tower_sha256(tower, check_checkpoint(plan), family_of(plan)),
        [plan.base_dtype, plan.attention, plan.device, plan.image_size, *quantised, *faster],
        source.config,
        type(processor).__name__,
        processor.image_processor.to_dict(),
        {name: version(name) for name in libraries},
        [file_sha256(Path(images.__file__)), code_sha256(Path(pictures.__file__).parent)],
    ]
    return hashlib.sha256(json.dumps(decided_by, sort_keys=True, default=str).encode()).hexdigest()


def _bytes_of(plan: RunPlan, model: ModelFacts) -> BytesOf:
    """Return what tells the bytes of an image's features from its size."""
    preprocessor, per_token = plan.preprocessor(model.preprocessor), bytes_per_token(plan, model)
    return lambda size_px: model.family.image_tokens(model.config, preprocessor, *size_px) * per_token


def _prepare_disk(
    plan: RunPlan,
    bytes_of: BytesOf,
    images: Sequence[RowImages],
    missing: list[Missing],
    store: FeatureStore,
    teller: Teller,
) -> None:
    """Say what will be written, and make room for it.

    Raises:
        VlmtuneError: the budget or the disk has none, or the folder cannot be written.
    """
    every = {digest: tuple(px) for one in images for digest, px in zip(one.digests, one.sizes_px.tolist(), strict=True)}
    all_bytes, new_bytes = sum(map(bytes_of, every.values())), sum(bytes_of(one.size_px) for one in missing)
    budget_bytes = budget_bytes_of(plan)
    if all_bytes > budget_bytes:
        raise VlmtuneError(
            f"{BUDGET}: {plan.cache_features_gib:g} GiB, but the features of {count(len(every), 'image')} take "
            f"{all_bytes / GIB:.1f} GiB",
            f"raise {BUDGET}, or set {KEY}: false",
        )
    forget_abandoned()
    if removed_bytes := make_room(store, every, new_bytes, budget_bytes):
        teller.note(f"{removed_bytes / GIB:.2f} GiB of older cached features make room")
    if (free := free_bytes()) is None:
        raise not_writable(store.folder)
    if new_bytes > free:
        raise full_disk(store.folder, f"{new_bytes / GIB:.1f} GiB are needed, {free / GIB:.1f} GiB can be spared: ")
    teller.note(
        f"{count(len(missing), 'image')} of {len(every):,} are encoded before training: at most "
        f"{new_bytes / GIB:.2f} GiB into {store.folder} (all cached features: up to {plan.cache_features_gib:g} GiB)"
    )
