"""How many rows are answered at once: what memory has room for, and less where it had none after all."""

from types import SimpleNamespace

import pytest
import torch

from vlmtune.engine.answers.together import Together, free_bytes, row_bytes_of
from vlmtune.models.build import base_of, build_model


def prompts(*num_tokens: int) -> list:
    return [SimpleNamespace(labels=torch.zeros(1, number)) for number in num_tokens]


def sizes(batches) -> list[list[int]]:
    return [[prompt.labels.shape[1] for prompt in batch] for batch in batches]


def test_a_batch_is_as_large_as_half_of_the_room_for_its_longest_row():
    together = Together(room_bytes=lambda: 200)
    batches = together.batches(prompts(10, 10, 50, 40, 60, 5), lambda tokens: tokens)
    assert sizes(batches) == [[10, 10], [50, 40], [60], [5]]


def test_a_row_that_does_not_fit_is_tried_alone_and_without_a_known_room_the_number_rules():
    assert sizes(Together(room_bytes=lambda: 0).batches(prompts(9, 9), lambda tokens: tokens)) == [[9], [9]]
    assert sizes(Together(2).batches(prompts(9, 9, 9), lambda tokens: tokens)) == [[9, 9], [9]]
    assert list(Together().batches([], lambda tokens: tokens)) == []


def test_without_memory_for_all_rows_they_are_answered_in_halves_from_then_on():
    asked = []

    def answer(batch):
        asked.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("full")
        return [prompt * 10 for prompt in batch]

    together = Together(8)
    assert together.halved([1, 2, 3, 4, 5], answer) == [10, 20, 30, 40, 50]
    assert asked == [5, 2, 1, 2], "three are not tried"
    assert together.most_rows == 2
    with pytest.raises(torch.OutOfMemoryError):
        Together(8).halved([1], lambda batch: answer([1, 2, 3]))


def test_a_row_takes_the_keys_and_values_of_its_tokens(models):
    """Held to what a model's cache holds after a prompt."""
    model = build_model(models("llava").plan).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    cache = base_of(model)(input_ids=ids, use_cache=True).past_key_values
    held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    row_bytes = row_bytes_of(model, max_new_tokens=0)
    assert held == row_bytes(4) - row_bytes(0) > 0
    assert row_bytes_of(model, 3)(1) - row_bytes(1) == held * 3 / 4


def test_what_is_free_is_told_or_unknown():
    assert free_bytes("cpu") is None or free_bytes("cpu") > 2**20
