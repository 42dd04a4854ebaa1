"""Processes that have read other files than the first one are refused before the first step."""

import pytest
import torch
from tiny.rows import tiny_plan

from vlmtune.engine.ranks import alike, group
from vlmtune.engine.ranks.alike import SameNumbers, refuse_unseen
from vlmtune.errors import VlmtuneError
from vlmtune.models.build import build_model
from vlmtune.runs.folder import RunFolder


@pytest.fixture
def other(monkeypatch):
    """A function that puts another process beside this one, which says what it is told to."""

    def put(word, number: int = 0) -> None:
        monkeypatch.setattr(group, "size", lambda: 2)
        monkeypatch.setattr(group, "number", lambda: number)
        monkeypatch.setattr(alike.socket, "gethostname", lambda: "here")
        monkeypatch.setattr(group, "gathered", lambda value: [value, ("there", word(value[1]))])

    return put


def test_a_run_folder_that_one_does_not_see_is_refused_by_the_first_one(tmp_path, other):
    folder = RunFolder(tmp_path)
    folder.plan.touch()
    other(lambda sees: sees)
    refuse_unseen(folder)
    other(lambda sees: False)
    with pytest.raises(VlmtuneError, match="process 1 on there does not find the run folder .* of process 0 on here"):
        refuse_unseen(folder)
    other(lambda sees: False, number=1)
    refuse_unseen(folder)


def test_one_other_number_is_refused_by_the_first_one(models, other):
    model = build_model(tiny_plan(models("llava").folder))
    check = SameNumbers(model)
    other(lambda numbers: numbers)
    check.on_train_begin(None, None, None)

    def after_a_change(numbers: dict) -> dict:
        name, weight = next((name, one) for name, one in model.named_parameters() if "layers.1.input_layernorm" in name)
        with torch.no_grad():
            weight[3] += 0.01
        return alike._numbers_of(model)

    other(after_a_change)
    with pytest.raises(VlmtuneError, match=r"process 1 on there has .* 1 tensors differ, such as .*layers\.1\.input"):
        check.on_train_begin(None, None, None)
