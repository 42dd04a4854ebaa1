"""Packs: rows behind each other in one, as many as so many tokens hold.

Shapes: S optimizer steps of R rows each, P packs of a step, T tokens of a pack.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from vlmtune.data.collate import WHERE, Collate, Collator, collate, join_images, token_tensor, without_rows
from vlmtune.data.encode import IGNORED, Encoded, is_token_tensor
from vlmtune.data.types import count
from vlmtune.errors import VlmtuneError
from vlmtune.models.attention.packs import PACKED
from vlmtune.models.features import FEATURES
from vlmtune.plan.types import RunPlan

NO_ROOM = 2**40
"""More tokens than any pack has."""


class PackCollator:
    """Rows of an optimizer step → its packs, the largest first."""

    def __init__(self, pack_tokens: int, step: int = 1) -> None:
        """`step`: as in `packed`."""
        self.pack_tokens, self.step = pack_tokens, step

    def __call__(self, rows: list[Encoded | VlmtuneError | None]) -> list[dict] | VlmtuneError:
        """Return the packs; an error, which a worker could not raise, in their place."""
        rows = [row for row in rows if row is not None]
        if not rows:
            return [without_rows()]
        if errors := [row for row in rows if isinstance(row, VlmtuneError)]:
            return errors[0]
        packs = packs_of([row.labels.shape[1] for row in rows], self.pack_tokens)
        return [packed([rows[number] for number in pack], self.step) for pack in packs]


def packs_of(lengths: Sequence[int], pack_tokens: int) -> list[list[int]]:
    """Return the numbers of the rows of each pack, the largest first; a row that none can hold is one itself."""
    [pack_R] = best_fit(np.asarray(lengths)[None], pack_tokens)
    return [np.flatnonzero(pack_R == number).tolist() for number in range(pack_R.max() + 1)]


def best_fit(lengths_SR: np.ndarray, pack_tokens: int) -> np.ndarray:
    """Return the number of each row's pack [S, R], 0 being the largest, for S steps of R rows of these lengths.

    The longest row first, each into the pack in which it leaves the least room; all steps at once, for runs of millions
    of rows.
    """
    steps, most_packs = lengths_SR.shape
    size_SP = np.zeros((steps, most_packs), np.int64)
    is_open_SP = np.zeros((steps, most_packs), bool)
    pack_SR, every_S = np.empty((steps, most_packs), np.int64), np.arange(steps)
    for rows_S in (-lengths_SR).argsort(axis=1, kind="stable").T:
        length_S = lengths_SR[every_S, rows_S]
        left_SP = pack_tokens - size_SP - length_S[:, None]
        left_SP[~is_open_SP | (left_SP < 0)] = NO_ROOM
        pack_S = np.where(left_SP.min(axis=1) < NO_ROOM, left_SP.argmin(axis=1), is_open_SP.sum(axis=1))
        size_SP[every_S, pack_S] += length_S
        is_open_SP[every_S, pack_S] = True
        pack_SR[every_S, rows_S] = pack_S
    by_size_SP = (-size_SP).argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    return np.take_along_axis(by_size_SP, pack_SR, axis=1)


def largest_packs(lengths_SR: np.ndarray, pack_tokens: int) -> np.ndarray:
    """Return the tokens of each step's largest pack [S]."""
    return (lengths_SR * (best_fit(lengths_SR, pack_tokens) == 0)).sum(axis=1)


def tell_of_long_rows(lengths: np.ndarray, plan: RunPlan, tell: Callable[[str], None]) -> None:
    """Say how many rows no pack holds."""
    longer = int((lengths > plan.pack_tokens).sum()) if plan.pack_tokens else 0
    if longer:
        rows = f"{count(longer, 'row')} of {len(lengths):,}"
        tell(f"longer than training.pack_tokens: {plan.pack_tokens}: {rows}; each is a pack of its own")


def collate_of(plan: RunPlan, collator: Collator) -> Collate:
    """Return what makes a batch of rows as the plan has them, in a pack or under each other."""
    return partial(packed, step=plan.pack_step) if plan.pack_tokens else collator


def filled_up(tokens: np.ndarray | int, step: int) -> np.ndarray | int:
    """Return the tokens of packs with what they are filled up with: a multiple of `step`."""
    return -(-tokens // step) * step


def packed(rows: list[Encoded], step: int = 1) -> dict[str, Tensor | list[str]]:
    """Return the batch of one pack, [1, T]: rows behind each other, each with its own positions.

    The first token of a row is not learned: it would be predicted from the last one of the row before it. As many
    tokens as make T a multiple of `step` come behind the last row, as one that nobody sees and nothing is learned of.
    """
    where, tokens = [row.where for row in rows], sum(row.labels.shape[1] for row in rows)
    missing = filled_up(tokens, step) - tokens
    rows = [*rows, *([_nothing_like(rows[0], missing)] if missing else [])]
    lengths = [row.labels.shape[1] for row in rows]
    tensors: dict[str, Tensor] = {}
    for key in {key: None for row in rows for key in row.tensors}:
        with_key = [row for row in rows if key in row.tensors]
        if all(is_token_tensor(key, row.tensors[key], row.labels.shape[1]) for row in with_key):
            tensors[key] = torch.cat([token_tensor(row, key) for row in rows], dim=1)
        elif key == FEATURES:
            tensors[key] = torch.cat([row.tensors[key] for row in with_key], dim=1)
        else:
            tensors[key] = join_images(key, [row.tensors for row in with_key])
    tensors["position_ids"] = torch.cat([torch.arange(length) for length in lengths])[None]
    tensors[PACKED] = torch.arange(len(rows)).repeat_interleave(torch.tensor(lengths))[None]
    labels = torch.cat([row.labels.index_fill(1, torch.tensor([0]), IGNORED) for row in rows], dim=1)
    pack = Encoded(tensors, labels, torch.cat([row.is_image for row in rows]), rows[0].where)
    return {**collate([pack], 0), WHERE: where}


def _nothing_like(row: Encoded, tokens: int) -> Encoded:
    """Return a row of so many tokens that mean nothing, with what every row has for each of its tokens."""
    length = row.labels.shape[1]
    tensors = {
        key: tensor.new_zeros(1, tokens) for key, tensor in row.tensors.items() if is_token_tensor(key, tensor, length)
    }
    labels = torch.full((1, tokens), IGNORED)
    return Encoded(tensors, labels, torch.zeros(tokens, dtype=torch.bool), row.where)
