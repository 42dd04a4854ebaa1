"""Every metric, what it needs and which answers it suits; the best over the accepted answers, and the sum over rows."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from vlmtune.errors import VlmtuneError
from vlmtune.metrics.boxes import iou, no_boxes
from vlmtune.metrics.fields import json_fields, json_valid, not_json
from vlmtune.metrics.texts import Ratio, anls, cer, contains, exact, token_f1, wer

EXTRA = "pip install 'vlmtune[metrics]'"


def _blank(expected: str) -> str | None:
    return None if expected.strip() else "is empty"


@dataclass(frozen=True)
class Metric:
    """One metric."""

    score: Callable[[str, str], Ratio]
    """(answer, one expected answer) -> amount and whole."""
    says: str
    """For people: what it is."""
    source: str
    """For people: whose definition it is."""
    unsuited: Callable[[str], str | None] | None = None
    """Expected answer -> why it cannot be compared with; None where it can. None in place of it: all can."""
    package: str = ""
    """What must be installed beside vlmtune."""
    is_error: bool = False
    """Whether less is better."""

    def best(self, answer: str, expected: Iterable[str]) -> Ratio:
        """Return amount and whole beside that accepted answer for which the value is best."""
        ratios = (self.score(answer, one) for one in expected)
        return (min if self.is_error else max)(ratios, key=value)


def value(ratio: Ratio) -> float:
    """Return amount / whole."""
    return ratio[0] / ratio[1]


METRICS = {
    "exact": Metric(exact, "the same text, but for blanks at its ends and composed accents", "vlmtune"),
    "contains": Metric(
        contains,
        "the expected text is in the answer, capitals and amount of blanks aside",
        "OCRBench",
        _blank,
    ),
    "cer": Metric(
        cer, "character error rate: edits / expected characters, over all rows", "jiwer", _blank, "jiwer", is_error=True
    ),
    "wer": Metric(
        wer, "word error rate: edits / expected words, over all rows", "jiwer", _blank, "jiwer", is_error=True
    ),
    "anls": Metric(
        anls,
        "1 - edits / characters of the longer text, capitals and amount of blanks aside; 0 where that is 0.5 or less",
        "DocVQA; distance by rapidfuzz",
        _blank,
        "rapidfuzz",
    ),
    "token_f1": Metric(token_f1, "F1 of the words, capitals, punctuation and English articles aside", "SQuAD", _blank),
    "json_valid": Metric(json_valid, "the answer is JSON; a fence of Markdown around it is allowed", "json", not_json),
    "json_fields": Metric(
        json_fields,
        "share of the expected fields, nested ones too, that the answer has with the same value; fields that nobody "
        "expected do not count",
        "vlmtune",
        not_json,
    ),
    "iou": Metric(
        iou,
        "intersection over union of boxes, each with its best match; one too many or missing counts as 0",
        "area as in torchvision's box_iou",
        no_boxes,
    ),
}


def require_installed(names: Iterable[str]) -> None:
    """Raise one error that names what metrics need and is not installed."""
    missing = {METRICS[name].package: name for name in names if METRICS[name].package}
    missing = {package: name for package, name in missing.items() if find_spec(package) is None}
    if missing:
        what = ", ".join(f"{name} needs {package}" for package, name in missing.items())
        raise VlmtuneError(f"evaluation.metrics: {what}, which is not installed", EXTRA)


def scores_of(names: Iterable[str], answer: str, expected: Sequence[str]) -> dict[str, Ratio]:
    """Return metric -> amount and whole of one answer, beside the accepted answer that is best for each."""
    return {name: METRICS[name].best(answer, expected) for name in names}


def over_rows(scores: Sequence[dict[str, Ratio]]) -> dict[str, float]:
    """Return metric -> value over rows: the sum of the amounts over that of the wholes."""
    names = scores[0] if scores else ()
    return {name: value(tuple(map(sum, zip(*(one[name] for one in scores), strict=True)))) for name in names}
