"""No memory: what is said, that it is free again, and a run that takes less at a time and goes on."""

import json
import weakref
from contextlib import nullcontext

import pytest
import torch
import yaml

from vlmtune import levers
from vlmtune.engine import train as engine_run
from vlmtune.engine import trainer
from vlmtune.levers.base import OnResume
from vlmtune.plan.file import load_plan
from vlmtune.units import GIB
from vlmtune.workflow import train as command

OFFLOADED = "hardware.offload_activations=true"
"""Has no effect on a CPU, and is what would be tried first."""
CACHED = "data.cache_features=true"
TWO_BY_TWO = ("training.batch_size=2", "training.gradient_accumulation_steps=2", "training.save_steps=1", OFFLOADED)
ONE_BY_FOUR = ("training.batch_size=1", "training.gradient_accumulation_steps=4", "training.save_steps=1")
RETRY = "hardware.on_oom=retry"
ERROR = "CUDA out of memory. Tried to allocate 1.20 GiB.\nmore lines"


@pytest.fixture(autouse=True)
def card(monkeypatch):
    """Readings of a card, on a machine without one."""
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 7 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 15 * GIB // 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (GIB // 4, 8 * GIB))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: 1.0)
    properties = type("Properties", (), {"total_memory": 8 * GIB})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


@pytest.fixture
def fail_at(monkeypatch):
    """A function that makes the calls with these numbers of `owner.name` run out of memory."""

    def put(owner, name, *numbers, error=torch.OutOfMemoryError):
        real, count = getattr(owner, name), iter(range(1, 10_000))

        def call(*args, **kwargs):
            if next(count) in numbers:
                raise error(ERROR)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    return put


class Killed(BaseException):
    """Stands for a kill where no code may run afterwards: nothing catches it."""


def report_of(folder):
    return json.loads(folder.report_json.read_text())


def test_the_error_names_rows_and_bytes(project, fail_at):
    fail_at(trainer, "forward_loss", 1)
    stopped = project.train("oom", "training.batch_size=2")
    assert stopped.code == 1
    head, hint = stopped.stderr.splitlines()
    assert head.startswith("error: out of GPU memory at rows.jsonl:6 and ")
    assert "(2×70 tokens): 7.00 GiB in tensors, 7.50 GiB reserved, card 8.00 GiB. CUDA out of memory. Tried" in head
    assert hint.startswith("hint:  smaller pictures (data.image_size)")
    assert not project.run("oom").path.exists(), "the next try may have the same name"


@pytest.mark.parametrize("name", ["build_model", "TuneTrainer"])
def test_outside_of_the_steps(project, fail_at, name):
    fail_at(engine_run, name, 1)
    stopped = project.train("oom")
    assert stopped.code == 1 and "out of GPU memory outside of forward and backward" in stopped.stderr


def test_a_retry_goes_on_from_the_checkpoint_as_a_run_with_the_smaller_batch_does(project, fail_at, weights):
    with pytest.raises(Killed), pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, trainer, "forward_loss", 5)
        project.train("by-hand", *TWO_BY_TWO)
    assert project.run("by-hand").latest_checkpoint().name == "checkpoint-2"
    assert project.train("by-hand", *ONE_BY_FOUR, resume=True).code == 0

    fail_at(trainer, "forward_loss", 5)
    done = project.train("retried", RETRY, *TWO_BY_TWO)
    folder = project.run("retried")
    assert done.code == 0, done.stderr
    (note,) = (line for line in done.stdout.splitlines() if line.startswith("out of GPU memory at rows.jsonl:"))
    change = "training.batch_size=1, training.gradient_accumulation_steps=4"
    assert note.endswith(f" tokens); from checkpoint-2 on: {change}") and "continuing from checkpoint-2" in done.stdout
    one, other = weights(project.run("by-hand")), weights(folder)
    assert one.keys() == other.keys() and len(one) >= 10
    assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-5

    plan = load_plan(folder.plan)
    assert (plan.batch_size, plan.gradient_accumulation_steps) == (1, 4)
    config = yaml.safe_load(folder.config.read_text())
    assert (config["training"]["batch_size"], config["training"]["gradient_accumulation_steps"]) == (1, 4)
    assert note in report_of(folder)["notes"]
    assert [record.step for record in folder.read_log()] == [1, 2, 3, 4]


def test_every_row_is_seen_once_an_epoch_across_a_retry(project, fail_at, monkeypatch):
    seen = []
    real = trainer.TuneTrainer.training_step

    def step(self, model, inputs, num_items_in_batch=None):
        rows, number = list(inputs["where"]), self.state.global_step
        loss = real(self, model, inputs, num_items_in_batch)
        seen.append((number, rows))
        return loss

    monkeypatch.setattr(trainer.TuneTrainer, "training_step", step)
    fail_at(trainer, "forward_loss", 4)  # the second micro-batch of the second step
    assert project.train("retried", RETRY, *TWO_BY_TWO).code == 0
    after = [row for number, rows in seen[3:] for row in rows if number in (1,)]
    first = [row for number, rows in seen[:2] for row in rows]
    assert sorted(first + after) == [f"rows.jsonl:{number}" for number in range(1, 8)]


def test_without_a_checkpoint_it_starts_again(project, fail_at, assert_same_weights):
    assert project.train("straight", *ONE_BY_FOUR).code == 0
    fail_at(trainer, "forward_loss", 1)
    done = project.train("retried", RETRY, *TWO_BY_TWO)
    assert done.code == 0 and "from the start on: training.batch_size=1" in done.stdout
    assert_same_weights(project.run("straight"), project.run("retried"))


def test_changes_come_in_their_order_and_end(project, fail_at):
    fail_at(trainer, "forward_loss", *range(1, 100))
    settings = ("training.batch_size=4", "hardware.gradient_checkpointing=false")
    stopped = project.train("retried", RETRY, *settings)
    assert stopped.code == 1 and stopped.stderr.startswith("error: out of GPU memory at rows.jsonl:6 (1×")
    notes = [line.partition(" on: ")[2] for line in stopped.stdout.splitlines() if " from the start on: " in line]
    assert notes == [
        "hardware.gradient_checkpointing=true",
        OFFLOADED,
        "training.batch_size=2, training.gradient_accumulation_steps=4",
        "training.batch_size=1, training.gradient_accumulation_steps=8",
        CACHED,
    ], "this model's input has a fixed size"
    assert not project.run("retried").path.exists()


def test_images_become_smaller_only_before_there_is_a_checkpoint(project, fail_at, tmp_path):
    from tiny import save_tiny

    save_tiny("qwen2_vl", tmp_path / "qwen")
    settings = (
        RETRY,
        OFFLOADED,
        CACHED,
        "model.name=qwen",
        "training.save_steps=1",
        "training.max_steps=2",
        "data.image_size=400",
    )
    fail_at(trainer, "forward_loss", 1)
    done = project.train("smaller", *settings)
    assert done.code == 0 and "from the start on: data.image_size=" in done.stdout
    assert 224 <= load_plan(project.run("smaller").plan).image_size < 400
    fail_at(trainer, "forward_loss", 3)  # of the second step
    stopped = project.train("same", *settings)
    assert project.run("same").latest_checkpoint().name == "checkpoint-1"
    assert stopped.code == 1 and "image_size" not in stopped.stdout


def test_by_default_nothing_is_changed(project, fail_at):
    fail_at(trainer, "forward_loss", 5)
    assert project.train("oom", *TWO_BY_TWO).code == 1
    assert not project.run("oom").retries.exists()


def test_a_retried_run_is_resumed_with_its_changes(project, fail_at, assert_same_weights):
    fail_at(trainer, "forward_loss", 5)
    assert project.train("straight", RETRY, *TWO_BY_TWO).code == 0
    fail_at(trainer, "forward_loss", 5)
    with pytest.raises(Killed), pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, trainer, "forward_loss", 10)
        project.train("killed", RETRY, *TWO_BY_TWO)
    resumed = project.train("killed", RETRY, *TWO_BY_TWO, resume=True)
    assert resumed.code == 0 and "from checkpoint-2 on: training.batch_size=1" in resumed.stdout
    assert load_plan(project.run("killed").plan).batch_size == 1
    assert any("from checkpoint-2 on" in note for note in report_of(project.run("killed"))["notes"])
    assert_same_weights(project.run("straight"), project.run("killed"))


def test_an_edit_made_meanwhile_does_not_enter_the_run(project, fail_at, monkeypatch):
    fail_at(trainer, "forward_loss", 3)
    failing = trainer.forward_loss

    def edit(*args, **kwargs):
        try:
            return failing(*args, **kwargs)
        except torch.OutOfMemoryError:
            project.config.write_text(project.config.read_text().replace("learning_rate: 0.01", "learning_rate: 0.5"))
            raise

    monkeypatch.setattr(trainer, "forward_loss", edit)
    before = project.config.read_text()
    assert project.train("retried", RETRY, *TWO_BY_TWO).code == 0
    assert before != project.config.read_text()
    plan = load_plan(project.run("retried").plan)
    assert (plan.batch_size, plan.learning_rate) == (1, 0.01)
    assert "learning_rate: 0.01" in project.run("retried").config.read_text()


def test_killed_while_a_change_is_kept(project, fail_at, monkeypatch, tmp_path, assert_same_weights):
    """The change is noted before the plan that has it: a resumed run meets the plan that was before it."""
    from tiny import save_tiny

    from vlmtune.workflow import attempts

    save_tiny("qwen2_vl", tmp_path / "qwen")
    settings = (RETRY, OFFLOADED, CACHED, "model.name=qwen", "training.max_steps=2", "data.image_size=400")
    fail_at(trainer, "forward_loss", 1)
    assert project.train("straight", *settings).code == 0
    fail_at(trainer, "forward_loss", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "_unless_trained_removed", lambda *args, **kwargs: nullcontext())
        interrupt_at(patch, attempts, "keep_job", 1)
        with pytest.raises(Killed):
            project.train("killed", *settings)
    folder = project.run("killed")
    assert load_plan(folder.plan).image_size == 400 and len(folder.read_retries()) == 1
    refused = project.train("killed", *settings, "training.seed=7", resume=True)
    assert refused.code == 1 and "was started differently" in refused.stderr and "seed: 42 -> 7" in refused.stderr
    resumed = project.train("killed", *settings, resume=True)
    assert resumed.code == 0, resumed.stderr
    assert load_plan(folder.plan).image_size < 400
    assert_same_weights(project.run("straight"), folder)


def test_the_failed_model_is_freed_before_the_next_is_built(project, fail_at, monkeypatch):
    built, alive = [], []
    real = engine_run.build_model

    def build(plan, **how):
        alive.append([model() for model in built if model() is not None])
        model = real(plan, **how)
        built.append(weakref.ref(model))
        return model

    monkeypatch.setattr(engine_run, "build_model", build)
    fail_at(trainer, "forward_loss", 3)
    assert project.train("retried", RETRY, *TWO_BY_TWO).code == 0
    assert alive == [[], []]


def test_other_savings_than_those_that_keep_adapters_and_rows_are_never_taken():
    by_rule = {
        rule: {key for lever in levers.LEVERS if lever.on_resume is rule for key in lever.keys} for rule in OnResume
    }
    assert by_rule[OnResume.FREE] == {
        "hardware.gradient_checkpointing",
        "hardware.checkpointed_layers",
        "hardware.offload_activations",
        "hardware.offload_embeddings",
        "training.batch_size",
        "training.gradient_accumulation_steps",
        "hardware.streamed_layers",
        "hardware.lean_lora",
        "hardware.num_gpus",
        "hardware.shard",
        "hardware.varlen_attention",
        "hardware.align_widths",
        "hardware.fused_norms",
        "hardware.fused_elementwise",
        "hardware.joined_constants",
        "hardware.cuda_graphs",
        "data.cache_features",
        "data.cache_features_gib",
        "model.cache_quantized",
    }
    until_checkpoint = {"training.optim", "data.image_size", "training.packing", "training.pack_tokens"}
    assert by_rule[OnResume.UNTIL_CHECKPOINT] == until_checkpoint
    assert {"training.lora.rank", "data.max_length", "training.method"} <= by_rule[OnResume.PINNED]


def interrupt_at(patch, owner, name, number):
    """Kill the run before the n-th call of `owner.name`."""
    real, count = getattr(owner, name), iter(range(1, 10_000))

    def call(*args, **kwargs):
        if next(count) == number:
            raise Killed
        return real(*args, **kwargs)

    patch.setattr(owner, name, call)
