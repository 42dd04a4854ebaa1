"""Whether metrics suit the rows that they shall be taken on: said before a model loads."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from vlmtune.data.boxes.marks import has_marks
from vlmtune.data.types import Sample, count
from vlmtune.errors import VlmtuneError
from vlmtune.families.base import THOUGHT_ENDS
from vlmtune.metrics.boxes import no_boxes
from vlmtune.metrics.table import METRICS, require_installed

KEY = "evaluation.metrics"
HINT = f"leave the metric out of {KEY} (--metric), or evaluate other rows: --data FILE"
HINT_BEFORE_TRAINING = f"leave the metric out of {KEY}, or hold out other rows"


def refuse_metrics(names: Sequence[str], samples: Sequence[Sample], *, in_training: bool) -> None:
    """Raise where a run's metrics cannot be taken on the rows that it holds out, in training or after it."""
    if in_training:
        require_installed(names)
    refuse_unsuited(names, samples, HINT_BEFORE_TRAINING)


def refuse_unsuited(names: Iterable[str], samples: Sequence[Sample], way_out: str = HINT) -> None:
    """Raise one error that names metrics which cannot be taken on rows, as read, and the first row of each."""
    problems = [problem for name in names if (problem := _problem(name, samples))]
    if problems:
        raise VlmtuneError(f"{KEY} does not suit the answers: {'; '.join(problems)}", way_out)


def _problem(name: str, samples: Sequence[Sample]) -> str | None:
    why_not = METRICS[name].unsuited
    found = list(_unsuited(why_not, samples)) if why_not else []
    if not found:
        return None
    where, why = found[0]
    return f"{name} on {count(len(found), 'row')} of {len(samples):,}, {where}: the expected answer {why}"


def _unsuited(why_not: Callable[[str], str | None], samples: Sequence[Sample]) -> Iterator[tuple[str, str]]:
    """Yield name and reason of the rows with an accepted answer that the metric cannot compare with."""
    for sample in samples:
        for expected in (_after_thought(sample.answer), *sample.accepted):
            is_box = why_not is no_boxes and has_marks(expected)
            if not is_box and (why := why_not(expected)):
                yield sample.where, why
                break


def _after_thought(text: str) -> str:
    """Return what follows the thought of an answer; here the model is not known, which may know none."""
    return next((text.rpartition(end)[2] for end in THOUGHT_ENDS if end in text), text)
