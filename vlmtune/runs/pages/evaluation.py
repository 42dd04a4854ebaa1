"""The page of an evaluation: its numbers, and a gallery of rows with their pictures, answers and scores.

It stays of a size that a phone opens, however many rows there are, and says what it leaves out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from vlmtune.runs.histogram import histogram_of_losses
from vlmtune.runs.pages.charts import Chart, histogram_chart
from vlmtune.runs.pages.rendering import render
from vlmtune.runs.records import Answered, EvaluatedRow, EvaluationRecord

WORST_ROWS, FIRST_ROWS = 100, 100
TEXT_CHARS = 1000
"""The most that is shown of a text."""
MOST_LISTED = 8
"""Accepted answers and scores of a row."""
EXACT = "exact"


@dataclass(frozen=True)
class Picture:
    """One picture of a row."""

    name: str
    uri: str
    """`data:` with a small JPEG; empty where there is none."""
    why: str = ""
    """Why there is none."""


@dataclass(frozen=True)
class Shown:
    """One row of the gallery."""

    row: EvaluatedRow
    pictures: Sequence[Picture]
    kinds: tuple[str, ...]
    """Of KINDS: what it can be looked for by."""
    by_loss: int
    by_change: int
    number: int
    """Its place in the file."""

    @property
    def answers(self) -> list[tuple[str, str, Answered]]:
        """What was answered: by whom, right or wrong where that is known, and what; the newest first."""
        given = [("answer", self.row), ("before", self.row.before)]
        return [(name, _verdict(one), one) for name, one in given if one]

    @property
    def expected(self) -> list[str]:
        """The accepted answers that are shown."""
        more = len(self.row.expected) - MOST_LISTED
        return self.row.expected[:MOST_LISTED] + ([f"… and {more:,} more"] if more > 0 else [])


KINDS = {
    "wrong": "not the expected answer",
    "learned": "right now, wrong before",
    "lost": "wrong now, right before",
    "cut": "answer cut",
}


def rows_shown(record: EvaluationRecord) -> list[int]:
    """Return the places of the rows that the page shows: the worst, then the first of the file."""
    num_rows = len(record.rows)
    by_loss = sorted(range(num_rows), key=partial(_badness, record.rows))
    worst = by_loss if num_rows <= WORST_ROWS + FIRST_ROWS else by_loss[:WORST_ROWS]
    return list(dict.fromkeys([*worst, *range(min(FIRST_ROWS, num_rows))]))


def render_evaluation(record: EvaluationRecord, name: str, pictures: Mapping[int, Sequence[Picture]]) -> str:
    """Return the page; `pictures` are those of the rows that `rows_shown` names."""
    places = rows_shown(record)
    by_change = {place: rank for rank, place in enumerate(sorted(places, key=partial(_change, record.rows)))}
    by_loss = {place: rank for rank, place in enumerate(sorted(places, key=partial(_badness, record.rows)))}
    shown = [
        Shown(row, pictures.get(place, ()), _kinds(row), by_loss[place], by_change[place], place)
        for place, row in ((place, record.rows[place]) for place in places)
    ]
    kinds = {kind: sum(kind in one.kinds for one in shown) for kind in KINDS}
    return render(
        "evaluation.html.j2",
        name=name,
        record=record,
        tiles=_tiles(record),
        charts=[chart for chart in [_loss_chart(record)] if chart],
        shown=shown,
        kinds={kind: number for kind, number in kinds.items() if number},
        words=KINDS,
        left_out=_left_out(record, places),
        short=_short,
        scores=_scores,
    )


def _badness(rows: Sequence[EvaluatedRow], place: int) -> tuple[float, int]:
    loss = rows[place].loss
    return (-loss if math.isfinite(loss) else -math.inf), place


def _change(rows: Sequence[EvaluatedRow], place: int) -> tuple[float, int]:
    """Return a key that puts first what became worse most."""
    row = rows[place]
    change = row.loss - row.before.loss if row.before else 0.0
    return (-change if math.isfinite(change) else -math.inf), place


def _kinds(row: EvaluatedRow) -> tuple[str, ...]:
    now, before = _verdict(row), _verdict(row.before) if row.before else ""
    is_kind = {
        "wrong": now == "wrong",
        "learned": (before, now) == ("wrong", "right"),
        "lost": (before, now) == ("right", "wrong"),
        "cut": row.cut,
    }
    return tuple(kind for kind, holds in is_kind.items() if holds)


def _verdict(given: Answered) -> str:
    """Return `right` or `wrong`, nothing where exact answers are not asked for."""
    exact = given.scores.get(EXACT)
    return "" if exact is None else "right" if exact >= 1 else "wrong"


def _tiles(record: EvaluationRecord) -> list[tuple[str, str, str]]:
    """Return the numbers at the top: name, value and that before."""
    before = record.before

    def told(value: float | None) -> str:
        return f"{_number(value)} before" if value is not None else ""

    metrics = [
        (name, _number(value), told(before.metrics.get(name) if before else None))
        for name, value in list(record.metrics.items())[:MOST_LISTED]
    ]
    cut = [("answers cut", f"{record.num_cut:,}", f"at {record.max_new_tokens:,} tokens")] if record.num_cut else []
    return [
        ("rows", f"{len(record.rows):,}", record.data),
        ("evaluation loss", _number(record.loss), told(before.loss if before else None)),
        *metrics,
        *cut,
    ]


def _loss_chart(record: EvaluationRecord) -> Chart | None:
    losses = [(record.asked, histogram_of_losses(row.loss for row in record.rows))]
    if record.before:
        before = histogram_of_losses(row.before.loss for row in record.rows if row.before)
        losses.append((record.before.asked, before))
    return histogram_chart("Loss of rows", "loss of a row", losses)


def _left_out(record: EvaluationRecord, places: Sequence[int]) -> str:
    if len(places) == len(record.rows):
        return ""
    return (
        f"{len(places):,} of {len(record.rows):,} rows are shown: the {WORST_ROWS} with the highest loss and the first "
        f"{FIRST_ROWS}. evaluation.json has all of them."
    )


def _short(text: str) -> str:
    if not text.strip():
        return "(nothing)" if not text else "(blanks)"
    return text if len(text) <= TEXT_CHARS else f"{text[:TEXT_CHARS]}… ({len(text):,} characters)"


def _scores(given: Answered) -> str:
    """Return verdict, loss and scores of an answer in words."""
    named = [("loss", given.loss), *((name, value) for name, value in given.scores.items() if name != EXACT)]
    shown = (f"{_short(name)} {value:.3g}" for name, value in named[: MOST_LISTED + 1])
    return " · ".join(filter(None, [_verdict(given), *shown, "cut" if given.cut else ""]))


def _number(value: float) -> str:
    """Return a score or a loss with as many places as say something."""
    return f"{value:.4f}".rstrip("0").rstrip(".") if math.isfinite(value) else "no number"
