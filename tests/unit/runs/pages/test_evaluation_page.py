"""The page of an evaluation: which rows it shows, that it stays small, and that nothing in it does anything."""

import dataclasses
import math
import re

import pytest
from pages import Page, an_evaluated_row, an_evaluation, with_all_texts

from vlmtune.runs.pages.evaluation import (
    FIRST_ROWS,
    TEXT_CHARS,
    WORST_ROWS,
    Judge,
    Picture,
    render_evaluation,
    rows_shown,
)
from vlmtune.runs.records import Answered

EXACT = Judge("exact", is_error=False)
PICTURE = Picture("cat.png", "data:image/jpeg;base64,AAAA")


def test_a_row_is_shown_with_its_picture_answers_and_scores():
    rows = [an_evaluated_row(7, before=0.0), an_evaluated_row(8, exact=0.0, loss=2.0, cut=True)]
    page = Page(render_evaluation(an_evaluation(rows, with_base=True), "cats", EXACT, {0: [PICTURE], 1: []}))
    for text in ("cats: evaluation", "75.0%", "25.0% before", "held-out.jsonl:7", "What is it?", "a cat", "a dog"):
        assert text in page.texts
    assert "right · loss 0.5 · cer 25%" in page.texts and "wrong · loss 2 · cer 25% · cut" in page.texts
    classes = [attributes["class"].split() for tag, attributes in page.tags if tag == "article"]
    assert classes == [["row", "wrong", "cut"], ["row", "better"]], "the highest loss first"
    assert [attributes["src"] for tag, attributes in page.tags if tag == "img"] == [PICTURE.uri]


def test_what_was_right_before_is_worse():
    record = an_evaluation([an_evaluated_row(exact=0.0, before=1.0)], with_base=True)
    page = render_evaluation(record, "cats", EXACT, {})
    assert "worse (1)" in Page(page).texts and 'class="row wrong worse"' in page


def test_the_worst_and_the_first_of_many_rows_are_shown_and_said_to_be():
    rows = [an_evaluated_row(number, loss=number / 1000) for number in range(10_000)]
    rows[5_000] = an_evaluated_row(5_000, loss=math.nan)
    record = an_evaluation(rows)
    places = rows_shown(record)
    assert places[0] == 5_000, "what is no number is worst"
    assert places[1:WORST_ROWS] == list(range(9_999, 10_000 - WORST_ROWS, -1))
    assert places[WORST_ROWS:] == list(range(FIRST_ROWS))
    page = Page(render_evaluation(record, "cats", EXACT, {}))
    assert [tag for tag, _ in page.tags].count("article") == WORST_ROWS + FIRST_ROWS
    assert any(text.startswith("200 of 10,000 rows are shown: the 100 with the highest loss") for text in page.texts)
    assert rows_shown(an_evaluation(rows[:180])) == list(range(179, -1, -1)), "few are all shown"


def test_a_page_of_endless_texts_is_bounded():
    text = "&\u202e" * 500_000
    rows = [with_all_texts(an_evaluated_row(expected=[text] * 50), text) for _ in range(3)]
    judge = Judge(next(iter(rows[0].scores)), is_error=False)
    page = render_evaluation(an_evaluation(rows), "cats", judge, {0: [Picture(text, "", "cannot be opened")]})
    assert len(page) < 3 * 14 * TEXT_CHARS * 7, "a row has 14 texts; escaped they are up to seven times as long"
    assert "(1,000,000 characters)" in page and "… and 42 more" in page


def test_what_others_wrote_is_text():
    evil, turned = """<script>'"</script>""", "\u202e"
    record = with_all_texts(an_evaluation([an_evaluated_row(before=0.0)], with_base=True), evil + turned)
    judge = Judge(next(iter(record.metrics)), is_error=False)
    text = render_evaluation(record, evil, judge, {0: [Picture(evil, PICTURE.uri), Picture(evil, "", evil)]})
    page = Page(text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "object"}) and turned not in text
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert sum(evil in shown for shown in page.texts) >= 10


def test_the_page_needs_nothing_from_elsewhere():
    text = render_evaluation(an_evaluation([an_evaluated_row()]), "cats", EXACT, {0: [PICTURE]})
    assert not re.search(r"<script|<link|url\(|@import|https?:", text)
    assert """default-src 'none'; img-src data:""" in text


@pytest.mark.parametrize(("answer", "shown"), [("", "(nothing)"), (" \n", "(blanks)")])
def test_an_empty_answer_is_said_to_be(answer, shown):
    page = Page(render_evaluation(an_evaluation([an_evaluated_row(answer=answer)]), "cats", EXACT, {}))
    assert shown in page.texts


def test_answers_are_judged_by_the_first_metric_of_which_less_may_be_better():
    scores = [0.0, 0.1, 1.5]
    rows = [an_evaluated_row(number, scores={"cer": score}, loss=-number) for number, score in enumerate(scores)]
    before = Answered(answer="a", loss=1.0, cut=False, scores={"cer": 0.05})
    rows[1] = dataclasses.replace(rows[1], before=before)
    page = Page(render_evaluation(an_evaluation(rows), "cats", Judge("cer", is_error=True), {}))
    classes = [attributes["class"].split()[1:] for tag, attributes in page.tags if tag == "article"]
    assert classes == [[], ["wrong", "worse"], ["wrong"]]
    told = [text for text in page.texts if "loss" in text and "·" in text]
    assert told == ["right · loss 0", "loss -1 · cer 10%", "loss 1 · cer 5%", "wrong · loss -2"]
