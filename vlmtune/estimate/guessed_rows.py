"""Rows for a model whose tokenizer is not at hand: images as they are, texts of as many tokens as is guessed."""

import dataclasses
from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Literal, overload

from vlmtune.data.run_data import MeasuredRows
from vlmtune.data.types import Sample, Turn
from vlmtune.estimate.given_rows import GivenRows
from vlmtune.hub.source import ModelSource
from vlmtune.plan.types import RunPlan

if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from vlmtune.data.dataset import TuneDataset
    from vlmtune.data.encode import Encoded

BYTES_PER_TOKEN = 3
"""English has four or five a token, numbers and other alphabets fewer: memory is rather guessed too high."""


class GuessedRows(GivenRows):
    """Rows whose texts are as long as is guessed, for the stand-in tokenizer: a token a character."""

    def __init__(self, rows: GivenRows, source: ModelSource, on_bad_row: Literal["error", "skip"] = "error") -> None:
        parts = (MeasuredRows(_Guessed(part), on_bad_row) for part in (rows.samples, rows.held_out.samples))
        super().__init__(*parts, rows.files)
        self._source = source

    def _load(self, plan: RunPlan) -> "ProcessorMixin":
        from vlmtune.estimate.simulate.inputs import processor_without_files
        from vlmtune.models.build import family_of

        return processor_without_files(self._source, plan, family_of(plan))

    def _seen(self, rows: "TuneDataset", plan: RunPlan) -> "Sequence[Encoded]":
        """Return rows as the model sees them."""
        return _OwnIds(rows, self._source, self.processor(plan))


class _Guessed(Sequence[Sample]):
    """Samples with made-up texts, each made when it is asked for."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        found = self._samples[index]
        return [_guessed(sample) for sample in found] if isinstance(index, slice) else _guessed(found)


class _OwnIds(Sequence["Encoded"]):
    """Rows with the model's own numbers of special tokens in place of the stand-in's."""

    def __init__(self, rows: "Sequence[Encoded]", source: ModelSource, processor: "ProcessorMixin") -> None:
        self._rows, self._source, self._processor = rows, source, processor

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> "Encoded":
        from vlmtune.estimate.simulate.inputs import with_own_ids

        return with_own_ids(self._rows[index], self._source.config, self._processor)


def _guessed(sample: Sample) -> Sample:
    first, *others = map(_with_made_up_text, sample.turns)
    first = dataclasses.replace(first, parts=(*first.parts, *_made_up(sample.tools)))
    return dataclasses.replace(sample, turns=(first, *others), where=f"{sample.where}, text guessed", tools="")


def _with_made_up_text(turn: Turn) -> Turn:
    """Return the turn as a stand-in's template knows it: what others are given besides texts is text here."""
    parts = [made for part in turn.parts for made in (_made_up(part) if isinstance(part, str) else [part])]
    role = "user" if turn.role == "tool" else turn.role
    return Turn(role, (*parts, *_made_up(turn.more)), turn.is_learned)


def _made_up(text: str) -> list[str]:
    return ["a" * ceil(len(text.encode()) / BYTES_PER_TOKEN)] if text else []
