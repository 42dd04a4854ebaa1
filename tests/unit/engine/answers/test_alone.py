"""Models that cannot answer several rows at once are asked one by one, and that is said."""

from dataclasses import replace

from vlmtune.engine import evaluate
from vlmtune.families import generic
from vlmtune.models import build
from vlmtune.workflow.asked.evaluation import tell_of_one_by_one


def test_they_are_asked_one_by_one_and_that_is_said(models, monkeypatch, capsys):
    plan = models("llava").plan
    capsys.readouterr()
    assert evaluate.together_for(plan, 8).most_rows == 8
    tell_of_one_by_one(plan, 9, None)
    assert capsys.readouterr().err == ""
    alone = replace(models("llava").family, answers_alone=generic.ALONE)
    for module in (evaluate, build):
        monkeypatch.setattr(module, "family_of", lambda plan: alone)
    assert evaluate.together_for(plan, 8).most_rows == 1
    for num_rows, rows_at_once in ((9, None), (9, 4), (1, None), (9, 1)):
        tell_of_one_by_one(plan, num_rows, rows_at_once)
    assert capsys.readouterr().err == f"rows are answered one by one: {generic.ALONE}\n" * 2
