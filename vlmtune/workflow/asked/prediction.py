"""Rows without answers, or pictures, asked of what a run has learned: some at a time, whatever their number."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from vlmtune.data.types import BadRow, Sample
from vlmtune.errors import VlmtuneError

if TYPE_CHECKING:
    from vlmtune.config.load import LoadedConfig
    from vlmtune.data.dataset import TuneDataset
    from vlmtune.data.encode import Encoded
    from vlmtune.data.sources.unanswered import ToAnswer
    from vlmtune.engine.evaluate import Written
    from vlmtune.engine.tuned import Tuned

ROWS_HELD = 64
"""Read, looked at and asked before the next are read."""


def rows_asked(loaded: "LoadedConfig", path: Path, prompt: str | None) -> "ToAnswer":
    """Return the rows or pictures at a path, read as the rows of a run's config are; `prompt` goes before its own.

    Raises:
        VlmtuneError: there is nothing to read, or it cannot be opened.
    """
    from vlmtune.data.sources.opened import Settings
    from vlmtune.data.sources.unanswered import to_answer

    data = loaded.config.data
    image_dir = str(loaded.resolve_path(data.image_dir)) if data.image_dir else None
    return to_answer(path, Settings(Path, image_dir, data.allow_urls, data.columns, prompt or data.prompt))


@dataclass
class Predictor:
    """Asks rows as they come; what cannot be asked is told and left out."""

    tuned: "Tuned"
    max_new_tokens: int
    rows_at_once: int | None
    on_bad_row: Callable[[BadRow], None]
    on_answer: Callable[[int], None]
    num_answered: int = field(default=0, init=False)

    def answers(self, rows: Iterator[Sample | BadRow]) -> Iterator[dict]:
        """Yield what is written of each row that can be asked, in their order, as JSON values."""
        while held := list(islice(rows, ROWS_HELD)):
            for sample, written in self._asked(self._usable(held)):
                self.num_answered += 1
                yield {
                    "where": sample.where,
                    "images": [ref.name for ref in sample.images],
                    "question": sample.turns[-2].text,
                    "answer": written.answer,
                    "thought": written.thought,
                    "cut": written.is_cut,
                }

    def _usable(self, held: list[Sample | BadRow]) -> list[Sample]:
        """Return the rows whose pictures can be used."""
        from vlmtune.data.images import check_images

        bad_rows, _ = check_images([row for row in held if isinstance(row, Sample)])
        bad = {one.where: one for one in (*bad_rows, *(row for row in held if isinstance(row, BadRow)))}
        for row in held:
            if row.where in bad:
                self.on_bad_row(bad[row.where])
        return [row for row in held if row.where not in bad]

    def _asked(self, samples: list[Sample]) -> "Iterator[tuple[Sample, Written]]":
        from vlmtune.data.dataset import TuneDataset
        from vlmtune.engine.evaluate import answers_to, together_for
        from vlmtune.models.build import family_of

        plan = self.tuned.plan
        rows = TuneDataset(samples, self.tuned.processor, family_of(plan), plan)
        asked: list[Sample] = []
        together = together_for(plan, self.rows_at_once)
        prompts = self._prompts(rows, asked)
        for number, written in enumerate(
            answers_to(prompts, self.tuned, self.max_new_tokens, together, self.on_answer)
        ):
            yield asked[number], written

    def _prompts(self, rows: "TuneDataset", asked: list[Sample]) -> "Iterator[Encoded]":
        """Yield the prompts of rows that the model takes, and add each row to `asked`."""
        for index in range(len(rows)):
            try:
                prompt = rows.prompt(index)
            except VlmtuneError as error:
                where = rows.samples[index].where
                self.on_bad_row(BadRow(where, error.message.removeprefix(f"{where}: "), error.hint))
                continue
            asked.append(rows.samples[index])
            yield prompt
