"""Each metric beside its library or its published definition; several accepted answers; sums over rows."""

import jiwer
import pytest
import torch
from rapidfuzz.distance import Levenshtein
from torchvision.ops import box_iou

from vlmtune.config.schema import MetricName
from vlmtune.families.boxes import INTERNVL, PALIGEMMA, QWEN2_VL, QWEN_VL, THOUSANDTHS
from vlmtune.metrics.boxes import iou, overlap
from vlmtune.metrics.table import METRICS, over_rows, require_installed, scores_of, value

PAIRS = [
    ("the quick brown fox", "the quick brown fox jumps"),
    ("Total: 12.50 €", "total 12,50 €"),
    ("", "nothing was written"),
    ("a  b", "a b c d e f"),
    ("ein Käfer", "Ein Kaefer"),
]


def one(name: str, answer: str, *expected: str) -> float:
    return value(scores_of([name], answer, expected)[name])


def test_the_config_knows_every_metric():
    assert set(METRICS) == set(MetricName.__args__)


@pytest.mark.parametrize("name", ["cer", "wer"])
def test_error_rates_are_those_of_jiwer_for_a_row_and_over_all(name):
    library = getattr(jiwer, name)
    for answer, expected in PAIRS:
        assert one(name, answer, expected) == pytest.approx(library(expected, answer))
    answers, expected = zip(*PAIRS, strict=True)
    ours = over_rows([scores_of([name], *pair[:1], pair[1:]) for pair in PAIRS])[name]
    assert ours == pytest.approx(library(list(expected), list(answers)))
    mean_of_rows = sum(one(name, *pair) for pair in PAIRS) / len(PAIRS)
    assert ours != pytest.approx(mean_of_rows), "the longer texts weigh more"


def test_anls_is_that_of_docvqa():
    for answer, expected in PAIRS:
        low, wanted = (" ".join(text.lower().split()) for text in (answer, expected))
        distance = Levenshtein.distance(low, wanted) / max(len(low), len(wanted))
        assert one("anls", answer, expected) == pytest.approx(1 - distance if distance < 0.5 else 0.0)
    assert one("anls", "ab", "ax") == 0.0, "half of it is wrong"
    assert one("anls", "abc", "abx") == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("answer", "expected", "f1"),
    [
        ("The cat sat.", "a cat", 2 / 3),  # SQuAD's words: cat sat, cat
        ("cat cat dog", "cat dog dog", 2 / 3),  # a word counts as often as both have it
        ("the", "an", 1.0),  # no words on either side
        ("dog", "the", 0.0),
        ("U.S.A.", "usa", 1.0),
    ],
)
def test_token_f1_is_that_of_squad(answer, expected, f1):
    assert one("token_f1", answer, expected) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("name", "answer", "expected", "right"),
    [
        ("exact", " A cat. ", "A cat.", 1.0),
        ("exact", "a cat.", "A cat.", 0.0),
        ("exact", "caf\u0065\u0301", "café", 1.0),
        ("contains", "It is a\n CAT, I think", "a cat", 1.0),
        ("contains", "It is a dog", "a cat", 0.0),
        ("json_valid", '```json\n{"a": 1}\n```', "{}", 1.0),
        ("json_valid", '{"a": 1} and more', "{}", 0.0),
        ("json_fields", '{"a": 1.0, "b": {"c": ["x ", "z"]}, "more": 0}', '{"a": 1, "b": {"c": ["x", "y"]}}', 2 / 3),
        ("json_fields", '{"a": true}', '{"a": 1}', 0.0),
        ("json_fields", '{"a": {}}', '{"a": {"b": 1}}', 0.0),
        ("json_fields", "no JSON", "[1, 2]", 0.0),
        ("json_fields", "[" * 900 + "]" * 900, "[" * 900 + "]" * 900, 1.0),
    ],
)
def test_texts_and_fields(name, answer, expected, right):
    assert one(name, answer, expected) == pytest.approx(right)


def test_the_area_that_boxes_share_is_that_of_torchvision():
    boxes = [(0, 0, 10, 10), (5, 5, 15, 20), (2, 3, 4, 5), (20, 20, 30, 30)]
    theirs = box_iou(torch.tensor(boxes, dtype=torch.float), torch.tensor(boxes, dtype=torch.float))
    for i, first in enumerate(boxes):
        for j, second in enumerate(boxes):
            assert overlap(first, second) == pytest.approx(theirs[i, j].item())


@pytest.mark.parametrize("convention", [QWEN_VL, QWEN2_VL, PALIGEMMA, INTERNVL, THOUSANDTHS], ids=lambda one: one.name)
def test_boxes_are_read_as_every_model_writes_them(convention):
    half, whole = (convention.box(shares, (1000, 1000)) for shares in ((0, 0, 0.5, 0.5), (0, 0, 0.5, 0.25)))
    assert value(iou(f"the cat is at {half}.", f"cat {half}")) == 1.0
    assert value(iou(half, whole)) == pytest.approx(0.5, abs=0.01)
    assert value(iou("no box", whole)) == 0.0


def test_each_box_has_one_match_and_one_too_many_or_missing_counts_as_0():
    assert value(iou("[0, 0, 10, 10] [20, 20, 30, 30]", "[20, 20, 30, 30] and [0, 0, 10, 10]")) == 1.0
    assert value(iou("[0, 0, 10, 10] [0, 0, 10, 10]", "[0, 0, 10, 10]")) == 0.5
    assert value(iou('{"bbox_2d": [0.0, 0.0, 10.0, 10.0]}', "[0, 0, 10, 10] [5, 5, 6, 6]")) == 0.5


def test_the_best_of_several_accepted_answers_counts():
    assert one("exact", "cat", "a cat", "cat") == 1.0
    assert one("cer", "cat", "a cat", "cat", "dog") == 0.0
    assert one("anls", "cat", "dog", "cats") == pytest.approx(0.75)
    # The sum over rows takes the characters of the reference that was nearest.
    rows = [scores_of(["cer"], "cat", ["category", "cut"]), scores_of(["cer"], "abcdef", ["abcdef"])]
    assert over_rows(rows)["cer"] == pytest.approx(1 / 9)


def test_what_is_not_installed_is_named_once_with_the_way_to_install_it(monkeypatch):
    require_installed(METRICS)
    monkeypatch.setattr("vlmtune.metrics.table.find_spec", lambda name: None)
    require_installed(["exact", "contains", "token_f1", "json_fields", "iou"])
    with pytest.raises(Exception, match=r"anls needs rapidfuzz") as caught:
        require_installed(["exact", "cer", "wer", "anls"])
    assert str(caught.value) == (
        "evaluation.metrics: wer needs jiwer, anls needs rapidfuzz, which is not installed\n"
        "hint: pip install 'vlmtune[metrics]'"
    )
