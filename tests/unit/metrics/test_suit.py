"""A metric that does not suit the answers is said before a model loads."""

import pytest
from tiny.rows import sample

from vlmtune.data.boxes.marks import Box
from vlmtune.errors import VlmtuneError
from vlmtune.metrics.suit import refuse_metrics, refuse_unsuited
from vlmtune.metrics.table import METRICS

TEXT = sample("What?", "a cat", where="held-out.jsonl:1")
JSON = sample("What?", '{"a": 1}', where="held-out.jsonl:2")
THOUGHT = sample("What?", '<think>hm</think>\n{"a": 1}', where="held-out.jsonl:3")
READ_BOX = sample("Where?", "at " + Box(0, (0.1, 0.1, 0.5, 0.5), in_pixels=False).mark, where="held-out.jsonl:4")
BARE_BOX = sample("Where?", "[10, 20, 30, 40]", where="held-out.jsonl:5")


def test_metrics_that_suit_say_nothing():
    refuse_unsuited([name for name in METRICS if not name.startswith(("json", "iou"))], [TEXT, JSON, THOUGHT])
    refuse_unsuited(["json_valid", "json_fields"], [JSON, THOUGHT])
    refuse_unsuited(["iou"], [READ_BOX, BARE_BOX])


def test_one_error_names_every_metric_and_its_first_row():
    with pytest.raises(VlmtuneError) as caught:
        refuse_unsuited(["exact", "json_fields", "iou"], [JSON, TEXT, BARE_BOX])
    assert str(caught.value) == (
        "evaluation.metrics does not suit the answers: json_fields on 1 row of 3, held-out.jsonl:1: the expected "
        "answer is not JSON; iou on 2 rows of 3, held-out.jsonl:2: the expected answer holds no box\n"
        "hint: leave the metric out of evaluation.metrics (--metric), or evaluate other rows: --data FILE"
    )


def test_an_answer_without_text_has_no_error_rate():
    with pytest.raises(VlmtuneError, match="cer on 1 row of 1, rows.jsonl:1: the expected answer is empty"):
        refuse_unsuited(["cer"], [sample("Call it", "")])


def test_before_training_no_flag_of_evaluate_is_named():
    with pytest.raises(VlmtuneError) as caught:
        refuse_metrics(["iou"], [TEXT], in_training=False)
    assert caught.value.hint == "leave the metric out of evaluation.metrics, or hold out other rows"
