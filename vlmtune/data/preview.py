"""Rows as the model will see them, in pieces: what is learned, what is read, what is an image."""

from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from transformers import ProcessorMixin

from vlmtune.data.encode import IGNORED, Encoded


@dataclass(frozen=True)
class Piece:
    """A stretch of tokens of one kind."""

    kind: Literal["read", "learned", "image"]
    text: str
    num_tokens: int


def pieces(row: Encoded, processor: ProcessorMixin) -> list[Piece]:
    """Return the row's tokens, decoded, in stretches; an image is its number of tokens."""
    ids = row.tensors["input_ids"][0].tolist()
    kinds = [
        "image" if image else "learned" if label != IGNORED else "read"
        for image, label in zip(row.is_image.tolist(), row.labels[0].tolist(), strict=True)
    ]
    found = []
    for kind, group in groupby(zip(kinds, ids, strict=True), key=lambda pair: pair[0]):
        tokens = [token for _, token in group]
        text = f"[{len(tokens)} image tokens]" if kind == "image" else processor.tokenizer.decode(tokens)
        found.append(Piece(kind, text, len(tokens)))
    return found
