"""transformers' Trainer with vlmtune's step, optimizer, row order, checks and checkpoints put in their places."""

import math
import shutil
import time
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer

from vlmtune.compat.trainer import BASE_DATALOADER, DEVICE_PLACEMENT
from vlmtune.data.batches.order import DealtRows, LengthGroupedOrder
from vlmtune.data.batches.packs import PackCollator
from vlmtune.data.collate import WHERE, Collator, raising
from vlmtune.data.progress import Progress, silent
from vlmtune.data.workers import READERS
from vlmtune.engine.answers.held_out import HeldOutAnswers
from vlmtune.engine.arguments import Schedule, training_arguments
from vlmtune.engine.checkpoints import (
    WRITE_ERRORS,
    disk_full,
    finish_checkpoint,
    load_trained,
    save_adapter,
    save_trained,
)
from vlmtune.engine.evaluate import mean_loss, row_losses
from vlmtune.engine.oom import out_of_memory
from vlmtune.engine.ranks import group
from vlmtune.engine.ranks.checkpoints import load_random_state, save_random_states
from vlmtune.engine.ranks.gradients import sum_gradients
from vlmtune.engine.ranks.pace import Waiting, keep_pace
from vlmtune.engine.step import LABELLED, drop_gradients, forward_loss, ready
from vlmtune.errors import VlmtuneError
from vlmtune.files import is_disk_full
from vlmtune.levers.optimizer import build_optimizer
from vlmtune.models.build import base_of
from vlmtune.models.layers.shards import end_pass, pass_by
from vlmtune.models.verify import refuse_other_base
from vlmtune.plan.types import RunPlan
from vlmtune.runs.folder import RunFolder
from vlmtune.runs.histogram import histogram_of_losses

ABSURD_LOSS = 1_000.0  # before the first step; who guesses among all tokens has 13 at most


@dataclass(frozen=True)
class Work:
    """What a run has done in some time: counted here, shown by the recorder."""

    tokens: int = 0
    rows: int = 0
    waited_s: float = 0.0
    trained_tokens: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))


class TuneTrainer(Trainer):
    """Trainer that runs a RunPlan."""

    def __init__(
        self,
        plan: RunPlan,
        model: torch.nn.Module,
        folder: RunFolder,
        lengths: list[int],
        collator: Collator,
        progress: Progress = silent,
        **kwargs: Any,
    ) -> None:
        """`lengths` are the tokens of each row; `progress` is told of evaluations.

        `kwargs` are Trainer's data sets.
        """
        data_collator = PackCollator(plan.pack_tokens, plan.pack_step) if plan.pack_tokens else collator
        super().__init__(model=model, args=training_arguments(plan, folder), data_collator=data_collator, **kwargs)
        # Batches go to the device one at a time: a step's batches are fetched together, and images are large.
        DEVICE_PLACEMENT.write(self.accelerator, False)
        self.plan, self.folder, self.collator = plan, folder, collator
        # Trainer goes through thousands of modules for these, at each batch or step.
        model.train()
        self.trained = [one for one in model.parameters() if one.requires_grad]
        model.zero_grad = partial(drop_gradients, self.trained)
        self.work = Work()
        """Since the recorder last asked."""
        self.losses: list[tuple[Tensor, list[str]]] = []
        """Of the step's batches, not read yet, and the rows of each."""
        self.step_has_images = False
        self.progress = progress
        self.is_evaluating = False
        self.evaluations_s: list[float] = []
        """How long each evaluation took."""
        self.held_out: HeldOutAnswers | None = None
        """Who asks the model at evaluations; None: nobody."""
        self.evaluated: dict[str, Any] = {}
        """What the last evaluation has found, as the log has it."""
        self.is_stopping = False
        """Whether the run ends as soon as it can."""
        self.waiting = Waiting(plan.device == "cuda")
        order = LengthGroupedOrder(lengths, plan.rows_per_step, plan.seed, plan.pack_tokens)
        self.order = DealtRows(order, plan, group.number())
        torch.manual_seed(plan.seed + group.number())  # of dropout: other rows are not to lose the same numbers

    def _get_train_sampler(self, train_dataset=None) -> Sampler[int]:
        # Trainer's own order by length would encode every row to learn its length, and follow torch's global generator:
        # after a resume, the rows that are skipped would be others than those trained on.
        self.order.order.takes = self.train_dataset.takes
        return self.order

    def get_train_dataloader(self) -> DataLoader:
        """Return Trainer's, whose processes leave it to this one to stop; one that is lost is not waited for."""
        loader = super().get_train_dataloader()
        base = READERS.watch(BASE_DATALOADER.read(loader), lambda row: self.train_dataset.samples[row].where)
        if base.num_workers:
            # It draws a number as its processes start, in a resumed run at other places: dropout must not feel it.
            base.generator = torch.Generator()
        return loader

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Build the plan's optimizer."""
        if self.optimizer is None:
            self.optimizer = build_optimizer(self.model, self.plan)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Schedule:
        """Build the plan's schedule."""
        if self.lr_scheduler is None:
            self.lr_scheduler = Schedule(optimizer or self.optimizer, self.args, num_training_steps)
        return self.lr_scheduler

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Fetch the batches of one step, and note how long that took and what they hold.

        They are made ready where they are, and counted: to read a number back from the card would be to wait for it.
        """
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            # Resumed from the last step's checkpoint, or where an evaluation ends the run: Trainer would take one step
            # more before it looks.
            self.control.should_training_stop = True
            return [], None
        started = time.perf_counter()
        batches = raising(epoch_iterator)
        batches = next(batches, []) if self.plan.pack_tokens else list(islice(batches, num_batches))
        waited_s = time.perf_counter() - started
        batches = [ready(base_of(self.model), batch) for batch in batches]
        tokens, rows, images, trained_tokens = map(
            int,
            group.total(
                [
                    sum(int(batch["attention_mask"].sum()) for batch in batches if batch[WHERE]),
                    sum(len(batch[WHERE]) for batch in batches),
                    any("pixel_values" in batch for batch in batches),
                    sum(len(batch[LABELLED]) for batch in batches),
                ]
            ),
        )
        self.work += Work(tokens, rows, waited_s, trained_tokens)
        self.step_has_images = images > 0
        num_items = torch.tensor(trained_tokens).to(device, non_blocking=True) if batches else None
        return [batches] if self.plan.pack_tokens and batches else batches, num_items

    def training_step(self, model, inputs: dict[str, Any] | list[dict], num_items_in_batch=None) -> Tensor:
        """Run forward and backward, and note the loss; no memory stops the run and names the rows.

        The packs of a step, a list, are one batch to Trainer, which knows no steps of so many batches as come.
        """
        batches = inputs if isinstance(inputs, list) else [inputs]
        loss = sum(self._pass(model, batch, num_items_in_batch) for batch in batches)
        keep_pace(base_of(self.model), self.plan, len(batches))
        return loss + self._add_up() if self.accelerator.sync_gradients else loss

    def _pass(self, model, inputs: dict[str, Any], num_items: Tensor) -> Tensor:
        """Run forward and backward of one batch."""
        where = inputs.pop(WHERE)  # names of rows, which no model takes
        if not where:
            pass_by(base_of(self.model))
            self.losses.append((torch.zeros((), device=self.args.device), where))
            return self.losses[-1][0]
        try:
            loss = self._forward_and_backward(model, inputs, num_items)
        except torch.OutOfMemoryError as error:
            tokens = "×".join(str(size) for size in inputs["labels"].shape)
            rows = where[0] + (f" and {len(where) - 1} more" if len(where) > 1 else "")
            raise out_of_memory(error, f"at {rows} ({tokens} tokens)") from None
        end_pass(base_of(self.model))
        self.losses.append((loss, where))
        return loss

    def _forward_and_backward(self, model, batch: dict[str, Tensor], num_items: Tensor) -> Tensor:
        """Return vlmtune's loss, which the model's own is not: that makes logits of every token."""
        batch = {name: tensor.to(self.args.device, non_blocking=True) for name, tensor in batch.items()}
        loss = forward_loss(model, batch, self.plan, num_items)
        del batch
        self.accelerator.backward(loss)
        return loss.detach()

    def _clip_grad_norm(self, model) -> Tensor:
        return self.accelerator.clip_grad_norm_(self.trained, self.plan.max_grad_norm)

    def _add_up(self) -> Tensor | float:
        """Add the gradients of all processes up, at the end of a step; return the others' losses."""
        if group.size() == 1:
            return 0.0
        with self.waiting.noted():
            sum_gradients(self.trained, group.total, group.add_up)
        own = torch.stack([loss for loss, _ in self.losses]).sum()
        everyone = own.clone()
        group.add_up(everyone)
        return everyone - own

    def refuse_no_number(self) -> None:
        """Stop the run, and name the rows, if a loss of the last step cannot be; all are read at once."""
        losses, self.losses = self.losses, []
        for loss, (_, where) in zip(torch.stack([loss for loss, _ in losses]).tolist(), losses, strict=True):
            if self.state.global_step == 1 and not loss < ABSURD_LOSS:
                what = f"the loss is {loss:.3g} before anything was learned, rows {', '.join(where)}"
                raise VlmtuneError(what, "the model's weights are damaged, or overflow (hardware.mixed_precision: no)")
            if not math.isfinite(loss):
                raise VlmtuneError(
                    f"the loss became {loss} at step {self.state.global_step}, rows {', '.join(where)}",
                    "lower training.learning_rate" + " or set hardware.mixed_precision: no" * self.plan.loss_scaling,
                )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return the evaluation loss, a mean over labelled tokens, and metrics of answers as `eval_exact` or the like.

        Trainer's own loop is a mean over batches, however many tokens they have, of a loss with all logits.
        """
        started, self.is_evaluating = time.perf_counter(), True
        with self.progress("evaluating rows", len(self.eval_dataset)) as advance:
            losses = row_losses(self.model, self.eval_dataset, self.collator, self.plan, advance)
        answered = self.held_out.metrics(self) if self.held_out else {}
        spread = histogram_of_losses(loss / max(1, tokens) for loss, tokens in losses)
        self.evaluated = {"eval_loss": mean_loss(losses), "eval_metrics": answered or None, "eval_row_losses": spread}
        metrics = {
            "eval_loss": self.evaluated["eval_loss"],
            **{f"eval_{name}": value for name, value in answered.items()},
        }
        self.is_evaluating = False
        self.evaluations_s.append(time.perf_counter() - started)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model, trial) -> None:
        checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        self.folder.refuse_removed()
        if checkpoint.is_symlink():  # what it leads to is not ours to write
            checkpoint.unlink()
        try:
            if group.is_first():
                super()._save_checkpoint(model, trial)
                save_random_states(checkpoint)
                finish_checkpoint(checkpoint, self.plan.save_total_limit, self.state.best_global_step)
            else:
                save_random_states(None)
        except WRITE_ERRORS as error:
            if not is_disk_full(error):
                raise
            shutil.rmtree(checkpoint, ignore_errors=True)
            raise disk_full(self.folder, checkpoint.name) from None

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write the trained weights of a checkpoint, where Trainer writes all; its other files are Trainer's."""
        if self.plan.method == "full":
            save_trained(self.model, Path(output_dir))
        else:
            save_adapter(self.model, Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        # Trainer refuses a checkpoint without a whole model or an adapter in it.
        if self.plan.method == "full":
            load_trained(self.model, Path(resume_from_checkpoint))
        else:
            refuse_other_base(base_of(self.model), Path(resume_from_checkpoint), self.plan.lora_rank)
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint:
            load_random_state(Path(checkpoint), self.plan.seed)

    def load_trained_of(self, checkpoint: Path) -> None:
        """Let the model be that of a checkpoint."""
        self._load_from_checkpoint(str(checkpoint), self.model)

    def floating_point_ops(self, inputs) -> int:
        """Return 0: counting parameters at each step costs time, and nobody reads the sum."""
        return 0
