"""Which evaluation is the best one, by loss or by a metric of answers."""

from types import SimpleNamespace

import pytest

from vlmtune.config.schema import TrainingConfig
from vlmtune.engine.results.best import KeepBest, metrics_of
from vlmtune.runs.records import StepRecord

BY_EXACT = {"training": {"save_best_by": "exact", "eval_steps": 1}, "data": {"train_path": "a", "val_path": "b"}}


def noted(values, name="eval_exact", greater_is_better=True):
    """Return the step of the best of some evaluations."""
    args = SimpleNamespace(metric_for_best_model=name, greater_is_better=greater_is_better)
    state = SimpleNamespace(best_metric=None, best_global_step=None, global_step=0)
    for state.global_step, metrics in enumerate(values, 1):
        KeepBest(None).on_evaluate(args, state, SimpleNamespace(), metrics)
    return state.best_global_step


def test_more_is_better_of_answers_and_less_of_errors():
    assert noted([{"eval_exact": 0.2}, {"eval_exact": 0.7}, {"eval_exact": 0.5}]) == 2
    assert noted([{"eval_cer": 0.2}, {"eval_cer": 0.1}, {"eval_cer": 0.5}], "eval_cer", greater_is_better=False) == 2


def test_an_evaluation_without_answers_is_not_the_best():
    """Answers end where time or memory does."""
    assert noted([{"eval_loss": 1.0}, {"eval_loss": 2.0, "eval_exact": 0.1}, {"eval_loss": 0.5}]) == 2
    assert noted([{"eval_loss": 1.0}]) is None


def test_a_record_has_loss_and_metrics_by_the_trainers_names():
    fields = dict.fromkeys(StepRecord.__dataclass_fields__)
    record = StepRecord(**fields | {"eval_loss": 0.5, "eval_metrics": {"exact": 0.25}})
    assert metrics_of(record) == {"eval_loss": 0.5, "eval_exact": 0.25}


@pytest.mark.parametrize("evaluation", [{}, {"metrics": ("cer",), "generate_rows": 4}])
def test_a_metric_that_is_not_taken_in_training_chooses_nothing(evaluation):
    with pytest.raises(ValueError, match="training.save_best_by: exact is not taken in training"):
        TrainingConfig.model_validate({"model": {"name": "m"}, **BY_EXACT, "evaluation": evaluation})
    TrainingConfig.model_validate({"model": {"name": "m"}, **BY_EXACT, "evaluation": {"generate_rows": 4}})
