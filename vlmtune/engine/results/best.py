"""The best evaluation of a run: its checkpoint stays, becomes the result, and ends a run that gets no better."""

from pathlib import Path

from transformers import EarlyStoppingCallback, TrainerCallback

from vlmtune.compat.trainer import STATEFUL_CALLBACKS
from vlmtune.engine.monitor import LiveView
from vlmtune.engine.trainer import TuneTrainer
from vlmtune.plan.types import RunPlan
from vlmtune.runs.folder import COMPLETE, RunFolder
from vlmtune.runs.manifest import damage
from vlmtune.runs.records import Best, StepRecord


class KeepBest(TrainerCallback):
    """Notes the best evaluation in Trainer's state, which checkpoints keep, and asks for a checkpoint of it.

    Trainer does so behind its own evaluations alone, and not behind one that is made up for as a run goes on.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Note what was made up for already: a kill came before a checkpoint that has it."""
        for record in self.folder.read_log():
            if record.step == state.global_step and record.eval_loss is not None:
                self._note(args, state, metrics_of(record))

    def on_evaluate(self, args, state, control, metrics, **kwargs) -> None:
        if self._note(args, state, metrics):
            control.should_save = True

    def _note(self, args, state, metrics: dict[str, float]) -> bool:
        value, best = metrics.get(args.metric_for_best_model), state.best_metric
        if value is None:  # answers may end for want of time or memory
            return False
        is_best = best is None or (value > best if args.greater_is_better else value < best)
        if is_best:
            state.best_metric, state.best_global_step = value, state.global_step
        return is_best


def metrics_of(record: StepRecord) -> dict[str, float]:
    """Return what was evaluated at a step, by Trainer's names."""
    return {"eval_loss": record.eval_loss} | {f"eval_{name}": one for name, one in (record.eval_metrics or {}).items()}


class StopEarly(EarlyStoppingCallback):
    """Transformers' own, which goes on counting where a run goes on; to be called before the best is noted anew."""

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        kept = STATEFUL_CALLBACKS.read(state).setdefault(type(self).__name__, self.state())
        self.early_stopping_patience_counter = kept["attributes"]["early_stopping_patience_counter"]


def callbacks_of(plan: RunPlan, folder: RunFolder) -> list[TrainerCallback]:
    """Return what the plan wants of the best evaluation."""
    patience = plan.early_stopping_patience
    stop = [StopEarly(patience)] if patience else []
    return [*stop, KeepBest(folder)] if plan.save_best_by else []


def take_best(trainer: TuneTrainer, plan: RunPlan, folder: RunFolder, view: LiveView) -> Best | None:
    """Let the model be that of the best evaluation, tell of it and return it; None where the plan wants the last."""
    if not plan.save_best_by:
        return None
    state = trainer.state
    if state.best_metric is None:
        view.note(f"no evaluation has {plan.save_best_by}: the last step is kept")
        return None
    checkpoint = folder.checkpoints / f"checkpoint-{state.best_global_step}"
    if state.best_global_step != state.global_step:
        if problem := _problem(checkpoint):
            view.note(f"{checkpoint.name} had the best {plan.save_best_by} and is {problem}: the last step is kept")
            return None
        trainer.load_trained_of(checkpoint)
    best = Best(plan.save_best_by, state.best_metric, state.best_global_step)
    view.note(_told(best, state.global_step, state.max_steps, plan))
    return best


def _problem(checkpoint: Path) -> str | None:
    if not (checkpoint / COMPLETE).is_file():
        return "gone"
    return f"damaged ({found})" if (found := damage(checkpoint, COMPLETE)) else None


def _told(best: Best, step: int, total_steps: int, plan: RunPlan) -> str:
    told = f"kept: step {best.step} with the best evaluation, {best.name} {best.value:.4f}"
    if step == total_steps:
        return told
    times = f"{plan.early_stopping_patience} evaluation{'s' * (plan.early_stopping_patience != 1)}"
    return f"stopped at step {step} of {total_steps}: {times} in a row without a better {best.name}; {told}"
