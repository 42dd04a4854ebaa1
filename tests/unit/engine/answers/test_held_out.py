"""Held-out rows answered in training: the same ones each time, within some minutes and the memory of a step."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny.rows import colour_rows

from vlmtune.data.dataset import TuneDataset
from vlmtune.data.progress import silent
from vlmtune.engine.answers import held_out
from vlmtune.engine.answers.held_out import HeldOutAnswers
from vlmtune.engine.answers.together import Together
from vlmtune.engine.evaluate import Written


@pytest.fixture
def asking(models, tmp_path, monkeypatch):
    """A function that returns held-out answers of ten rows, notes, and rows asked; all but every third are right."""

    def make(**changes):
        tiny = models("llava")
        plan = replace(tiny.plan, metrics=("exact",), generate_minutes=5.0, **changes)
        rows = TuneDataset(colour_rows(tmp_path, 10), tiny.processor, tiny.family, plan)
        notes, asked = [], []

        def answer(prompts, *rest):
            for index in (int(prompt.where.removeprefix("rows.jsonl:")) - 1 for prompt in prompts):
                asked.append(index)
                yield Written(rows.samples[index].answer if index % 3 else "?", "", False)

        monkeypatch.setattr(held_out, "answers_to", answer)
        return HeldOutAnswers(plan, rows, notes.append), notes, asked

    return make


@pytest.fixture
def a_trainer():
    return SimpleNamespace(model=torch.nn.Linear(1, 1).train(), is_stopping=False, progress=silent)


def test_the_same_rows_are_asked_each_time(asking, a_trainer):
    held, notes, asked = asking(generate_rows=4)
    found = held.metrics(a_trainer)
    assert found == {"exact": sum(index % 3 > 0 for index in asked) / 4} == held.metrics(a_trainer)
    assert len(set(asked)) == 4 and asked[:4] == asked[4:] and notes == []
    assert a_trainer.model.training
    again, _, asked_again = asking(generate_rows=40)
    again.metrics(a_trainer)
    assert sorted(asked_again) == list(range(10)) and asked_again[:4] == asked[:4], "any number of them is a draw"


def test_when_the_minutes_are_over_later_evaluations_have_the_rows_that_were_answered(asking, a_trainer, monkeypatch):
    held, notes, asked = asking(generate_rows=8)
    times = iter(range(0, 10_000, 100))
    monkeypatch.setattr(held_out, "time", SimpleNamespace(monotonic=lambda: next(times)))
    held.metrics(a_trainer)
    assert len(asked) == 4, "after 400 s"
    assert notes == ["4 of 8 held-out rows are answered at each evaluation: evaluation.generate_minutes are over"]
    held.metrics(a_trainer)
    assert asked[4:] == asked[:4]


def test_a_run_that_is_to_stop_answers_no_more(asking, a_trainer):
    held, _, asked = asking(generate_rows=8)
    a_trainer.is_stopping = True
    assert held.metrics(a_trainer) == {} and asked == []


def test_no_memory_for_an_answer_ends_the_answers_and_not_the_run(asking, a_trainer, monkeypatch):
    held, notes, _ = asking(generate_rows=8)

    def full(*args):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(held_out, "answers_to", full)
    assert held.metrics(a_trainer) == {} == held.metrics(a_trainer)
    assert notes == ["no memory for an answer beside the training: the loss alone is evaluated from here on"]


def test_on_a_card_as_many_rows_are_answered_at_once_as_the_estimate_has_counted(asking, a_trainer, monkeypatch):
    held, _, _ = asking(generate_rows=10, device="cuda")
    monkeypatch.setattr(held, "_give_back", lambda: None)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: silent("", 0))
    together = []
    answers_to = held_out.answers_to
    monkeypatch.setattr(held_out, "answers_to", lambda *args: together.append(args[3]) or answers_to(*args))
    held.metrics(a_trainer)
    held.rows_at_once = 6
    held.metrics(a_trainer)
    assert together == [Together(1), Together(6)], "one where there is no estimate"


def test_several_processes_share_the_rows(asking, a_trainer, monkeypatch):
    held, _, asked = asking(generate_rows=7)
    alone, all_rows = held.metrics(a_trainer), list(asked)
    shares = []
    monkeypatch.setattr(held_out.group, "size", lambda: 2)
    monkeypatch.setattr(held_out.group, "gathered", lambda share: shares.append(share) or shares)
    for number in range(2):
        monkeypatch.setattr(held_out.group, "number", lambda number=number: number)
        one, _, asked = asking(generate_rows=7)
        found = one.metrics(a_trainer)
        assert asked == all_rows[number::2]
    assert found == alone
    shares.append(None)
    assert one.metrics(a_trainer) == {}, "one of them could not answer"
