"""The page of an evaluation: its numbers, and a gallery of rows with their pictures, answers and scores.

It stays of a size that a phone opens, however many rows there are, and says what it leaves out.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from vlmtune.runs.histogram import histogram_of_losses
from vlmtune.runs.pages.charts import Chart, histogram_chart
from vlmtune.runs.pages.rendering import render
from vlmtune.runs.records import Answered, EvaluatedRow, EvaluationRecord

WORST_ROWS, FIRST_ROWS = 100, 100
TEXT_CHARS = 1000
"""The most that is shown of a text."""
MOST_LISTED = 8
"""Accepted answers and scores of a row."""


@dataclass(frozen=True)
class Picture:
    """One picture of a row."""

    name: str
    uri: str
    """`data:` with a small JPEG; empty where there is none."""
    why: str = ""
    """Why there is none."""


@dataclass(frozen=True)
class Judge:
    """The metric by which answers are right or wrong, better or worse."""

    metric: str
    is_error: bool
    """Less is better."""

    def goodness(self, given: Answered) -> float:
        """Return the score, 1 where nothing could be better; the less, the worse."""
        score = given.scores[self.metric]
        return 1 - score if self.is_error else score

    def verdict(self, given: Answered) -> str:
        """Return `right` or `wrong`, nothing between."""
        good = self.goodness(given)
        return "right" if good >= 1 else "wrong" if good <= 0 else ""

    def kinds(self, row: EvaluatedRow) -> dict[str, bool]:
        """Return what a row can be chosen by."""
        gain = self.goodness(row) - self.goodness(row.before) if row.before else 0.0
        return {"wrong": self.goodness(row) < 1, "better": gain > 0, "worse": gain < 0, "cut": row.cut}

    def words(self, given: Answered) -> str:
        """Return verdict, loss and scores of an answer."""
        verdict = self.verdict(given)
        scores = (f"{_short(name)} {_share(value)}" for name, value in given.scores.items())
        shown = (text for name, text in zip(given.scores, scores, strict=True) if name != self.metric or not verdict)
        cut = "cut" if given.cut else ""
        return " · ".join(filter(None, [verdict, f"loss {given.loss:.3g}", *islice(shown, MOST_LISTED), cut]))


@dataclass(frozen=True)
class Shown:
    """One row of the gallery."""

    row: EvaluatedRow
    pictures: Sequence[Picture]
    kinds: Sequence[str]
    by_loss: int
    """Its place in that order, as below."""
    by_rise: int
    by_number: int

    @property
    def answers(self) -> list[tuple[str, Answered]]:
        """What was answered, the newest first."""
        return [("answer", self.row), *([("before", self.row.before)] if self.row.before else [])]

    @property
    def expected(self) -> list[str]:
        """The accepted answers that are shown."""
        more = len(self.row.expected) - MOST_LISTED
        return self.row.expected[:MOST_LISTED] + ([f"… and {more:,} more"] if more > 0 else [])


def rows_shown(record: EvaluationRecord) -> list[int]:
    """Return the places of the rows that the page shows: the worst, then the first of the file."""
    num_rows = len(record.rows)
    by_loss = sorted(range(num_rows), key=partial(_badness, record.rows))
    worst = by_loss if num_rows <= WORST_ROWS + FIRST_ROWS else by_loss[:WORST_ROWS]
    return list(dict.fromkeys([*worst, *range(min(FIRST_ROWS, num_rows))]))


def render_evaluation(
    record: EvaluationRecord, name: str, judge: Judge, pictures: Mapping[int, Sequence[Picture]]
) -> str:
    """Return the page; `pictures` are those of the rows that `rows_shown` names."""
    places = rows_shown(record)
    shown = _shown(record, judge, pictures, places)
    kinds = Counter(kind for one in shown for kind in one.kinds)
    return render(
        "evaluation.html.j2",
        name=name,
        record=record,
        tiles=_tiles(record),
        charts=[chart for chart in [_loss_chart(record)] if chart],
        shown=shown,
        kinds={kind: kinds[kind] for kind in ("wrong", "better", "worse", "cut") if kinds[kind]},
        left_out=_left_out(record, places),
        judge=judge,
        short=_short,
    )


def _shown(
    record: EvaluationRecord, judge: Judge, pictures: Mapping[int, Sequence[Picture]], places: Sequence[int]
) -> list[Shown]:
    by_loss, by_rise = (
        {place: rank for rank, place in enumerate(sorted(places, key=partial(key, record.rows)))}
        for key in (_badness, _rise)
    )
    rows = ((place, record.rows[place]) for place in places)
    return [
        Shown(
            row=row,
            pictures=pictures.get(place, ()),
            kinds=[kind for kind, holds in judge.kinds(row).items() if holds],
            by_loss=by_loss[place],
            by_rise=by_rise[place],
            by_number=place,
        )
        for place, row in rows
    ]


def _badness(rows: Sequence[EvaluatedRow], place: int) -> tuple[float, int]:
    return _downwards(rows[place].loss), place


def _rise(rows: Sequence[EvaluatedRow], place: int) -> tuple[float, int]:
    row = rows[place]
    return _downwards(row.loss - row.before.loss if row.before else 0.0), place


def _downwards(value: float) -> float:
    """Return a key that sorts high values, and what is no number, first."""
    return -value if math.isfinite(value) else -math.inf


def _tiles(record: EvaluationRecord) -> list[tuple[str, str, str]]:
    """Return the numbers at the top: name, value and that before."""
    before = record.before
    loss = ("evaluation loss", f"{record.loss:.4f}", f"{before.loss:.4f} before" if before else "")
    metrics = [
        (name, f"{share:.1%}", f"{before.metrics[name]:.1%} before" if before else "")
        for name, share in islice(record.metrics.items(), MOST_LISTED)
    ]
    cut = [("answers cut", f"{record.num_cut:,}", f"at {record.max_new_tokens:,} tokens")] if record.num_cut else []
    return [("rows", f"{len(record.rows):,}", record.data), loss, *metrics, *cut]


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
        f"{FIRST_ROWS}. The .json file beside this page has all of them."
    )


def _short(text: str) -> str:
    if not text.strip():
        return "(nothing)" if not text else "(blanks)"
    return text if len(text) <= TEXT_CHARS else f"{text[:TEXT_CHARS]}… ({len(text):,} characters)"


def _share(value: float) -> str:
    return f"{100 * value:.3g}%"
