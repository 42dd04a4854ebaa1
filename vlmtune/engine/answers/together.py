"""How many rows are answered at once: as many as memory has room for, and half as many where it had none after all."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from vlmtune.data.encode import Encoded
from vlmtune.hardware.main_memory import read_main_memory
from vlmtune.models.build import base_of

MOST_ROWS = 16
"""More gain little: each token of an answer waits for the weights to be read, and those are read once for all rows."""
SHARE_FOR_CACHE = 0.5
"""Of the room; the rest is for what forward passes take beside keys and values."""


@dataclass
class Together:
    """What rows that are answered at once may take."""

    most_rows: int = MOST_ROWS
    room_bytes: Callable[[], int | None] = field(default=lambda: None)
    """What is free now; None where nobody tells, and where the number of rows was given."""

    def batches(self, prompts: Iterable[Encoded], row_bytes: Callable[[int], int]) -> Iterator[list[Encoded]]:
        """Yield prompts in batches that fit; `row_bytes` is what a row with a prompt of so many tokens takes."""
        waiting: list[Encoded] = []
        for prompt in prompts:
            if waiting and not self._fit([*waiting, prompt], row_bytes):
                yield waiting
                waiting = []
            waiting.append(prompt)
        if waiting:
            yield waiting

    def _fit(self, prompts: list[Encoded], row_bytes: Callable[[int], int]) -> bool:
        if len(prompts) > self.most_rows:
            return False
        room_bytes = self.room_bytes()
        longest = max(prompt.labels.shape[1] for prompt in prompts)
        return room_bytes is None or len(prompts) * row_bytes(longest) <= SHARE_FOR_CACHE * room_bytes

    def halved(self, batch: list[Encoded], answer: Callable[[list[Encoded]], list]) -> list:
        """Return what `answer` gives for a batch, in halves where memory does not suffice for all of it at once.

        Raises:
            OutOfMemoryError: one row alone was too much.
        """
        if len(batch) <= self.most_rows:
            try:
                return answer(batch)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
            torch.cuda.empty_cache()  # outside of the handler, which holds what the forward pass had made
            self.most_rows = len(batch) // 2
        half = len(batch) // 2
        return [*self.halved(batch[:half], answer), *self.halved(batch[half:], answer)]


def free_bytes(device: str) -> int | None:
    """Return what is free where the model is, blocks that torch holds and does not use included."""
    if device == "cuda":
        held_bytes = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + held_bytes
    memory = read_main_memory()
    return memory and memory.available_bytes


def row_bytes_of(model: nn.Module, max_new_tokens: int) -> Callable[[int], int]:
    """Return what a row takes while it is answered, by the tokens of its prompt: keys and values, and logits."""
    base = base_of(model)
    a_token_bytes = cache_token_bytes(model)
    keeps_all_logits = "logits_to_keep" not in inspect.signature(base.forward).parameters
    logits_bytes = base.config.get_text_config().vocab_size * torch.float32.itemsize

    def row_bytes(num_tokens: int) -> int:
        return a_token_bytes * (num_tokens + max_new_tokens) + logits_bytes * (num_tokens if keeps_all_logits else 1)

    return row_bytes


def cache_token_bytes(model: nn.Module) -> int:
    """Return what keys and values of a token take."""
    base = base_of(model)
    config = base.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * base.dtype.itemsize
