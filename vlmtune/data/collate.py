"""Rows → one batch.

Shapes: B rows, T tokens of the longest row; image tensors are joined along dimension 0, features along dimension 1.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ProcessorMixin

from vlmtune.data.encode import IGNORED, QFORMER_KEYS, Encoded, is_token_tensor
from vlmtune.errors import VlmtuneError
from vlmtune.models.features import FEATURES, PIXELS

WHERE = "where"
"""Key under which a batch carries the names of its rows, for messages; never given to a model."""
PACKED_SIZES = "target_sizes"
"""Sizes of images whose pixels a processor puts behind each other, [1, channels, patch, pixels] (MiniCPM-V)."""
OWN_SIZES = "image_sizes"
"""Sizes of pictures that their processor fills up to that of the largest (Pixtral)."""


Collate = Callable[[list], dict]
"""Rows → the batch of them."""


class Collator:
    """`collate` with the processor's padding token; a class, because workers need to pickle it."""

    def __init__(self, processor: ProcessorMixin) -> None:
        tokenizer = processor.tokenizer
        self.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def __call__(self, rows: list) -> dict:
        rows = [row for row in rows if row is not None]
        return collate(rows, self.pad_token_id) if rows else without_rows()

    def prompts(self, rows: list[Encoded]) -> dict[str, Tensor]:
        """Return prompts as one batch, padded on the left, so that all answers begin at the same place."""
        batch = collate(rows, self.pad_token_id, on_left=True)
        return {key: value for key, value in batch.items() if key not in (WHERE, "labels")}


def without_rows() -> dict[str, Tensor | list[str]]:
    """Return the batch of a process that has no row where others have."""
    return {"labels": torch.empty(0, 0, dtype=torch.long), WHERE: []}


def collate(
    rows: list[Encoded | VlmtuneError], pad_token_id: int, *, on_left: bool = False
) -> dict[str, Tensor | list[str]] | VlmtuneError:
    """Return the batch: token tensors padded to [B, T], `labels` [B, T], images joined, row names.

    Rows without images may stand among rows with images: models place image features by their tokens' positions.
    A row that is an error, which a worker could not raise, is returned in place of the batch.
    """
    errors = [row for row in rows if isinstance(row, VlmtuneError)]
    if errors:
        return errors[0]
    longest = max(row.labels.shape[1] for row in rows)
    pads = {"input_ids": pad_token_id}
    batch: dict[str, Tensor | list[str]] = {
        "labels": torch.cat([_padded(row.labels, longest, IGNORED, on_left) for row in rows]),
        WHERE: [row.where for row in rows],
    }
    for key in {key: None for row in rows for key in row.tensors}:
        with_key = [row for row in rows if key in row.tensors]
        if all(is_token_tensor(key, row.tensors[key], row.labels.shape[1]) for row in with_key):
            padded = [_padded(token_tensor(row, key), longest, pads.get(key, 0), on_left) for row in rows]
            batch[key] = torch.cat(padded)
        elif key in QFORMER_KEYS:
            most = max(row.tensors[key].shape[1] for row in rows)
            batch[key] = torch.cat([_padded(row.tensors[key], most, 0) for row in rows])
        elif key == FEATURES:
            batch[PIXELS] = torch.cat([row.tensors[key] for row in with_key], dim=1)
        else:
            batch[key] = join_images(key, [row.tensors for row in with_key])
    return batch


def join_images(key: str, images: list[dict[str, Tensor]]) -> Tensor:
    """Return one tensor of what several rows have of their images under a key."""
    tensors = [one[key] for one in images]
    packed = key == PIXELS and PACKED_SIZES in images[0]
    if OWN_SIZES in images[0] and tensors[0].ndim == 4:
        tensors = _as_large(tensors)
    return torch.cat(tensors, dim=-1) if packed else _joined(tensors)


def token_tensor(row: Encoded, key: str) -> Tensor:
    """Return a tensor of one value a token. A text-only row lacks the marks of image tokens: it has none."""
    return row.tensors[key] if key in row.tensors else torch.zeros_like(row.labels)


def _padded(tensor_1T: Tensor, length: int, value: int, on_left: bool = False) -> Tensor:
    missing = length - tensor_1T.shape[1]
    return F.pad(tensor_1T, (missing, 0) if on_left else (0, missing), value=value)


def _as_large(tensors: list[Tensor]) -> list[Tensor]:
    """Fill pictures up on the right and below, as their processors do within a row: their towers cut that off again."""
    height, width = (max(tensor.shape[side] for tensor in tensors) for side in (2, 3))
    return [F.pad(one, (0, width - one.shape[3], 0, height - one.shape[2])) for one in tensors]


def _joined(tensors: list[Tensor]) -> Tensor:
    """Join along dimension 0; rows with fewer tiles in dimension 1 are filled with empty ones, which models skip."""
    if tensors[0].ndim >= 4 and len({tensor.shape[1] for tensor in tensors}) > 1:
        most = max(tensor.shape[1] for tensor in tensors)
        tensors = [F.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, most - tensor.shape[1])) for tensor in tensors]
    return torch.cat(tensors)


def raising(batches: Iterable) -> Iterator:
    """Raise what a worker returned in place of a batch: raised there, it would come out as the text of a traceback."""
    for batch in batches:
        if isinstance(batch, VlmtuneError):
            raise batch
        yield batch
