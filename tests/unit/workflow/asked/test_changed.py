"""The rows that changed against another model: the most changed first, and of equals the first of the file."""

import pytest
from pages import an_evaluated_row, an_evaluation

from vlmtune.workflow.asked.evaluation import changed_rows


def changed(name: str, scores: list[tuple[float, float]]) -> list[list[int]]:
    """Numbers of the rows that are better and worse, by their scores before and after."""
    rows = []
    for number, (before, after) in enumerate(scores):
        row = an_evaluated_row(number, before=before, scores={name: after})
        row.before.scores[name] = before
        rows.append(row)
    record = an_evaluation(rows, with_base=True, metrics={name: 0.5})
    return [[int(row.where.rpartition(":")[2]) for row in part] for part in changed_rows(record)]


@pytest.mark.parametrize(("name", "sign"), [("exact", 1), ("cer", -1)])
def test_the_most_changed_come_first_and_equals_in_the_order_of_the_file(name, sign):
    scores = [(0.0, 0.5), (0.0, 1.0), (0.5, 0.5), (1.0, 0.0), (0.5, 0.0), (0.0, 1.0), (1.0, 0.0)]
    better, worse = [1, 5, 0], [3, 6, 4]
    assert changed(name, scores) == ([better, worse] if sign == 1 else [worse, better])
