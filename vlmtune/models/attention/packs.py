"""Packs: several rows behind each other in one, [1, T], that neither see each other nor count on from each other.

The model's own mask is made by the library, with all that the family adds to it (windows, images or prompts that see
both ways); here every pair of tokens from two rows is taken out of it. That holds whatever the library lets see each
other: its own packs join the prompts of PaliGemma and the windows of Gemma 3 across rows (5.17 to 5.23).

Shapes: T tokens of a pack, R rows in it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmtune.compat.transformers import MASKS
from vlmtune.models.attention.varlen import PACKS, is_causal, starts_of

PACKED = "row_ids"
"""Key under which a pack carries the number of each token's row, [1, T]; never given to a model."""


def num_rows(batch: dict[str, Tensor]) -> int:
    """Return the rows of a batch, packed or not; what fills a pack up is none, and has zeros in the mask."""
    return int(batch[PACKED].max()) + int(batch["attention_mask"].min()) if PACKED in batch else len(batch["labels"])


def placed(base: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch in which every row of a pack has the model's own positions, from its own start.

    Best asked for before the batch comes to the card: the model's code looks at single numbers, for each of which the
    processor would wait.
    """
    by_grid = getattr(base.base_model, "get_rope_index", None)
    is_placed = PACKED not in inputs or inputs["position_ids"].dim() == 3
    if is_placed or by_grid is None or "image_grid_thw" not in inputs:
        return inputs
    ids_1T, kinds_1T, rows_1T = inputs["input_ids"], inputs["mm_token_type_ids"], inputs[PACKED]
    lengths = torch.bincount(rows_1T[0]).tolist()
    mask_RT = _by_row(torch.ones_like(ids_1T), lengths)
    grids = {"image_grid_thw": inputs["image_grid_thw"], "attention_mask": mask_RT}
    positions_3RT, _ = by_grid(_by_row(ids_1T, lengths), mm_token_type_ids=_by_row(kinds_1T, lengths), **grids)
    return {**inputs, "position_ids": positions_3RT[:, mask_RT.bool()][:, None]}


def _by_row(tensor_1T: Tensor, lengths: list[int]) -> Tensor:
    """Return the rows of a pack under each other, filled up with zeros on the right."""
    rows = tensor_1T[0].split(lengths)
    return torch.stack([F.pad(row, (0, max(lengths) - len(row))) for row in rows])


@contextmanager
def rows_apart(row_ids_1T: Tensor | None) -> Iterator[None]:
    """Let no token see one of another row in the masks of the language model that are made meanwhile; None: one row."""
    masks = MASKS.get()
    names = [] if row_ids_1T is None else list(masks)
    for name in names:
        masks[name] = _apart(masks[name], row_ids_1T, starts_of(row_ids_1T) if name == PACKS else None)
    try:
        yield
    finally:
        for name in names:
            del masks[name]


def _apart(make: Callable, row_ids_1T: Tensor, starts: Tensor | None) -> Callable:
    """Return what makes masks of one kind; with `starts` those stand for a causal one."""

    def made(*args: Any, **kwargs: Any) -> Tensor | None:
        of_tower = "allow_is_bidirectional_skip" in kwargs
        if of_tower or kwargs["q_length"] != row_ids_1T.shape[1]:
            return make(*args, **kwargs)
        if starts is not None and is_causal(kwargs):
            return starts
        library = kwargs["mask_function"]

        def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return library(batch, head, query, key) & (row_ids_1T[0, query] == row_ids_1T[0, key])

        return make(*args, **{**kwargs, "mask_function": mask, "attention_mask": None, "allow_is_causal_skip": False})

    return made
