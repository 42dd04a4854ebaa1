"""The plan in transformers' words, and its schedule."""

from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments, get_scheduler

from vlmtune.compat.torch import LAST_RATES
from vlmtune.engine.ranks import group
from vlmtune.plan.types import RunPlan
from vlmtune.runs.folder import RunFolder

LESS_IS_BETTER = ("loss", "cer", "wer")
"""Of what is evaluated; of all else, more."""


class Schedule(LambdaLR):
    """transformers' schedule, one step ahead: its warm-up starts at 0, and a step at 0 learns nothing.

    It is that of one step more, so that a decay reaches 0 after the last step and not before it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, args: TrainingArguments, num_steps: int) -> None:
        def rates(num_steps: int, warmup: int = args.get_warmup_steps(num_steps)) -> list[Callable[[int], float]]:
            return get_scheduler(args.lr_scheduler_type, optimizer, warmup, num_steps).lr_lambdas

        self.ahead, self.of_0_1_0 = 1, rates(num_steps)
        super().__init__(optimizer, [lambda step, rate=rate: rate(step + 1) for rate in rates(num_steps + 1)])

    def state_dict(self) -> dict:
        """Return what a checkpoint keeps."""
        return {name: value for name, value in super().state_dict().items() if name != "of_0_1_0"}

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on from a checkpoint; a run of version 0.1.0, which began at 0, as it began."""
        super().load_state_dict({"ahead": 0, **state_dict})
        if not self.ahead:
            self.lr_lambdas = self.of_0_1_0
        rates = self.get_lr()  # the run may have been made longer since: the checkpoint's is that of its old end
        LAST_RATES.write(self, rates)
        for parameters, rate in zip(self.optimizer.param_groups, rates, strict=True):
            parameters["lr"] = rate


class Arguments(TrainingArguments):
    """Trainer's arguments for a model that is where it belongs."""

    @property
    def place_model_on_device(self) -> bool:
        """Trainer would bring all of it to the card, parts in main memory too."""
        return False


def training_arguments(plan: RunPlan, folder: RunFolder) -> Arguments:
    """Return the plan in transformers' words. Checkpointing, loss and optimizer are vlmtune's own and stay off here."""
    return Arguments(
        output_dir=str(folder.checkpoints),
        run_name=plan.experiment_name,
        per_device_train_batch_size=plan.rows_per_step if plan.pack_tokens else plan.batch_size,
        gradient_accumulation_steps=1 if plan.pack_tokens else plan.passes_per_step,
        num_train_epochs=plan.num_epochs,
        max_steps=plan.max_steps or -1,
        learning_rate=plan.learning_rate,
        warmup_steps=plan.warmup_ratio,  # below 1 it is a share of all steps
        lr_scheduler_type=plan.lr_scheduler_type,
        max_grad_norm=plan.max_grad_norm,
        seed=plan.seed,
        logging_steps=plan.logging_steps,
        logging_nan_inf_filter=False,  # it would log an average in place of a loss that is no number
        save_strategy="steps",
        save_steps=plan.save_steps,
        eval_strategy="steps" if plan.eval_steps else "no",
        eval_steps=plan.eval_steps,
        metric_for_best_model=f"eval_{plan.save_best_by}" if plan.save_best_by else None,
        greater_is_better=plan.save_best_by not in LESS_IS_BETTER,
        report_to=[name for name in plan.report_to if name == "wandb" and group.is_first()],
        remove_unused_columns=False,
        dataloader_num_workers=plan.num_workers,
        dataloader_persistent_workers=plan.num_workers > 0,
        dataloader_pin_memory=plan.device == "cuda",
        disable_tqdm=True,
        use_cpu=plan.device == "cpu",
        fp16=plan.loss_scaling,  # for the scaler of gradients: the loss enters autocast by itself
        bf16=False,
    )
