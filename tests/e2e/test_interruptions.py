"""What ends a run early: Ctrl-C, a full disk, a loss that is no number, a part that does not learn."""

import errno
import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from safetensors import SafetensorError
from transformers import ProcessorMixin

from vlmtune.engine import callbacks, trainer
from vlmtune.engine import evaluate as engine_evaluate
from vlmtune.engine import train as engine_run
from vlmtune.engine.monitor import LiveView
from vlmtune.models import build
from vlmtune.runs.folder import RunFolder


def call_at(monkeypatch, owner, name, number, action):
    """Run `action` before the n-th call of `owner.name`."""
    real, seen = getattr(owner, name), []

    def call(*args, **kwargs):
        seen.append(args)
        if len(seen) == number:
            action()
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


def failing(error):
    def fail():
        raise error

    return fail


@pytest.fixture(autouse=True)
def ctrl_c_reaches_us():
    """A shell starts background jobs with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_ctrl_c():
    """As a terminal does: the processes that read images get it too."""
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGINT)
    signal.raise_signal(signal.SIGINT)


def status(folder):
    return json.loads(folder.report_json.read_text())["status"]


@pytest.mark.parametrize("settings", [(), ("hardware.num_workers=2",)], ids=["alone", "with workers"])
def test_ctrl_c_once(project, monkeypatch, assert_same_weights, settings):
    settings = ("training.lora.dropout=0.3", "data.val_path=rows.jsonl", "training.eval_steps=5", *settings)
    project.train("straight", *settings)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with monkeypatch.context() as patch:
        call_at(patch, trainer, "forward_loss", 9, press_ctrl_c)
        stopped = project.train("stopped", *settings)
    folder = project.run("stopped")
    assert stopped.code == 130 and stopped.stderr == ""
    assert stopped.stdout.count("stopping after this step with a checkpoint") == 1
    assert "evaluating rows" not in stopped.stdout, "nobody waits for an evaluation after Ctrl-C"
    assert stopped.stdout.endswith("runs/stopped/checkpoints/checkpoint-5 is written; continue with --resume\n")
    assert status(folder) == "interrupted" and not folder.adapter.exists()
    assert folder.latest_checkpoint().name == "checkpoint-5"
    assert project.train("stopped", *settings, resume=True).code == 0
    assert status(folder) == "finished"
    assert_same_weights(project.run("straight"), folder)


def test_only_the_process_that_trains_answers_to_ctrl_c(capsys):
    """The processes that read images inherit the handler."""
    handler = callbacks.StopOnInterrupt(LiveView("run"), trainer=None)
    handler._process += 1
    handler._stop(signal.SIGINT, None)
    assert not handler.stopped and capsys.readouterr().out == ""


EVALUATED = ("data.val_path=rows.jsonl", "training.eval_steps=5", "training.save_steps=4")


def evaluations(folder):
    return [(record.step, round(record.eval_loss, 5)) for record in folder.read_log() if record.eval_loss is not None]


@pytest.mark.parametrize(
    ("owner", "call", "kept", "told"),
    [
        pytest.param(trainer, 9, "checkpoint-5", "stopping after this step with", id="in the step before it"),
        pytest.param(engine_evaluate, 3, "checkpoint-5", "stopping after this evaluation with", id="in it"),
        pytest.param(engine_evaluate, 10, "checkpoint-8", None, id="in that of the last step"),
    ],
)
def test_ctrl_c_at_an_evaluation_does_not_lose_it(project, assert_same_weights, owner, call, kept, told):
    project.straight(*EVALUATED)
    with pytest.MonkeyPatch.context() as patch:
        call_at(patch, owner, "forward_loss", call, press_ctrl_c)
        stopped = project.train("stopped", *EVALUATED)
    folder = project.run("stopped")
    assert stopped.code == 130 and folder.latest_checkpoint().name == kept
    assert told is None or told in stopped.stdout
    assert project.train("stopped", *EVALUATED, resume=True).code == 0
    assert [step for step, _ in evaluations(folder)] == [5, 8]
    assert evaluations(folder) == evaluations(project.run("straight"))
    assert_same_weights(project.run("straight"), folder)


def test_ctrl_c_in_the_last_step(project, monkeypatch, assert_same_weights):
    project.train("straight", "training.max_steps=2")
    with monkeypatch.context() as patch:
        call_at(patch, trainer, "forward_loss", 4, press_ctrl_c)
        assert project.train("stopped", "training.max_steps=2").code == 130
    assert project.train("stopped", "training.max_steps=2", resume=True).code == 0
    assert_same_weights(project.run("straight"), project.run("stopped"))


def test_ctrl_c_twice_stops_at_once(project, monkeypatch):
    call_at(monkeypatch, trainer, "forward_loss", 9, lambda: (press_ctrl_c(), press_ctrl_c()))
    stopped = project.train("stopped")
    assert stopped.code == 130
    assert stopped.stderr == "stopped: checkpoint-3 is the newest; continue with --resume\n"
    assert project.run("stopped").latest_checkpoint().name == "checkpoint-3"


def test_ctrl_c_while_the_model_loads_leaves_nothing(project, monkeypatch):
    call_at(monkeypatch, engine_run, "build_model", 1, press_ctrl_c)
    stopped = project.train("stopped")
    assert (stopped.code, stopped.stderr) == (130, "stopped: there is no checkpoint yet\n")
    assert not project.run("stopped").path.exists()


FULL_DISK = {
    "system": OSError(errno.ENOSPC, "No space left on device"),
    "quota": OSError(errno.EDQUOT, "Disk quota exceeded"),
    # As the libraries report it on a full file system, word for word.
    "safetensors": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    "safetensors on Windows": SafetensorError("I/O error: There is not enough space on the disk. (os error 112)"),
    "torch.save at the end": RuntimeError("basic_ios::clear: iostream error"),
    "torch.save": RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534"),
}


@pytest.mark.parametrize("error", FULL_DISK.values(), ids=FULL_DISK.keys())
def test_a_disk_that_fills_during_a_checkpoint_keeps_the_previous_one(project, monkeypatch, error):
    # The second checkpoint's third file.
    call_at(monkeypatch, trainer.TuneTrainer, "_save_rng_state", 2, failing(error))
    full = project.train("full")
    folder = project.run("full")
    assert full.code == 1
    assert full.stderr == (
        "error: the disk is full: checkpoint-6 could not be written\n"
        "hint:  checkpoint-3 is intact; free some space and continue with --resume\n"
    )
    assert [path.name for path in folder.checkpoints.iterdir()] == ["checkpoint-3"]


def test_another_error_while_saving_keeps_its_traceback(project, monkeypatch):
    call_at(monkeypatch, trainer.TuneTrainer, "_save_rng_state", 1, failing(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        project.train("bug")


@pytest.mark.parametrize("written", range(3))
def test_a_disk_that_fills_before_anything_is_learned(project, monkeypatch, written):
    with monkeypatch.context() as patch:
        # The first file says which process trains here; a run does without.
        call_at(patch, Path, "replace", written + 2, failing(FULL_DISK["system"]))
        full = project.train("full", "training.max_steps=1")
    assert full.code == 1 and full.stderr == (
        "error: the disk is full: a file of runs/full could not be written\n"
        "hint:  there is no checkpoint yet; free some space and start again\n"
    )
    assert not project.run("full").path.exists()
    assert project.train("full", "training.max_steps=1").code == 0


@pytest.mark.parametrize(
    ("owner", "name", "number"),
    [(RunFolder, "append_log", 5), (engine_run, "save_tuned", 1), (engine_run, "write_report", 1)],
    ids=["log", "adapter", "report"],
)
def test_a_disk_that_fills_elsewhere(project, monkeypatch, assert_same_weights, owner, name, number):
    project.straight()
    with monkeypatch.context() as patch:
        call_at(patch, owner, name, number, failing(FULL_DISK["system"]))
        full = project.train("full")
    assert full.code == 1 and full.stderr.startswith("error: the disk is full: a file of runs/full could not")
    kept = project.run("full").latest_checkpoint().name
    assert f"{kept} is intact; free some space and continue with --resume" in full.stderr
    assert project.train("full", resume=True).code == 0
    assert_same_weights(project.run("straight"), project.run("full"))
    assert not list(project.run("full").path.glob("*.partial"))


# As tokenizers reports it, word for word.
TOKENIZERS = Exception("No space left on device (os error 28)")


def test_a_disk_that_fills_while_the_processor_is_written(project, monkeypatch):
    project.train("done", "training.max_steps=1")
    with monkeypatch.context() as patch:
        call_at(patch, ProcessorMixin, "save_pretrained", 1, failing(TOKENIZERS))
        merged = project.run_cli("merge", "runs/done", "-o", "merged")
    assert merged.code == 1 and merged.stderr.startswith("error: the disk is full: merged could not be written\n")
    assert not list(project.root.glob("merged*"))
    with monkeypatch.context() as patch:
        call_at(patch, ProcessorMixin, "save_pretrained", 1, failing(TOKENIZERS))
        full = project.train("full", "training.max_steps=1")
    assert full.code == 1 and full.stderr.startswith("error: the disk is full: a file of runs/full could not be")


def test_a_half_written_adapter_is_removed(project, monkeypatch):
    def save_a_little(self, target, **kwargs):
        target.mkdir()
        (target / "adapter_model.safetensors").write_bytes(b"x")
        raise FULL_DISK["safetensors"]

    real = build.PeftModel.save_pretrained
    monkeypatch.setattr(
        build.PeftModel,
        "save_pretrained",
        lambda self, target, **kwargs: (save_a_little if "partial" in str(target) else real)(self, target, **kwargs),
    )
    assert project.train("full", "training.max_steps=1").code == 1
    assert not list(project.run("full").path.glob("adapter*"))


def test_a_loss_that_is_no_number_names_step_and_rows(project, monkeypatch):
    def poison():
        for parameter in model[0].parameters():
            if parameter.requires_grad:
                parameter.data.fill_(float("nan"))

    model = []
    real = engine_run.build_model
    monkeypatch.setattr(engine_run, "build_model", lambda plan, **how: model.append(real(plan, **how)) or model[0])
    call_at(monkeypatch, trainer, "forward_loss", 3, poison)
    stopped = project.train("nan", "training.save_steps=1")
    assert stopped.code == 1
    assert "error: the loss became nan at step 2, rows rows.jsonl:" in stopped.stderr
    assert "lower training.learning_rate\n" in stopped.stderr
    assert project.run("nan").latest_checkpoint().name == "checkpoint-1"


def test_adapters_on_the_tower_without_any_image_are_refused(project):
    project.write_rows([{"question": row["question"], "answer": row["answer"]} for row in project.rows])
    refused = project.train("blind", "training.lora.vision_tower=true")
    assert refused.code == 1 and "no row has an image" in refused.stderr


def test_adapters_on_the_tower_may_meet_their_first_image_later(project):
    text_only = {"question": "What is " + "two plus " * 40 + "two?", "answer": "many"}
    project.write_rows([text_only, *project.rows[:3]])
    settings = ("training.lora.vision_tower=true", "training.gradient_accumulation_steps=1")
    assert project.train("mixed", *settings).code == 0


def test_a_part_without_gradient_stops_the_run(project, monkeypatch):
    real = engine_run.build_model

    def with_detached_tower(plan, **how):
        model = real(plan, **how)
        projector = build.base_of(model).model.multi_modal_projector
        projector.register_forward_pre_hook(lambda module, args: tuple(value.detach() for value in args))
        return model

    monkeypatch.setattr(engine_run, "build_model", with_detached_tower)
    stopped = project.train("detached", "training.lora.vision_tower=true")
    assert stopped.code == 1 and "step 1 gave no gradient to: vision\n" in stopped.stderr


@pytest.mark.parametrize("warmup_ratio", [0, 0.2])
def test_a_frozen_tensor_that_changes_stops_the_run(project, monkeypatch, warmup_ratio):
    real = trainer.build_optimizer

    def with_one_too_many(model, plan):
        optimizer = real(model, plan)
        frozen = build.base_of(model).get_parameter("model.language_model.norm.weight")
        frozen.requires_grad_(True).register_hook(lambda gradient: gradient)
        optimizer.param_groups[0]["params"].append(frozen)
        return optimizer

    monkeypatch.setattr(trainer, "build_optimizer", with_one_too_many)
    monkeypatch.setattr(
        callbacks.FirstStepCheck,
        "_parameters",
        lambda self, trainable: (
            (name, parameter)
            for name, parameter in build.base_of(self.trainer.model).named_parameters()
            if ("lora_" in name) == trainable
        ),
    )
    stopped = project.train("thawed", f"training.warmup_ratio={warmup_ratio}")
    assert stopped.code == 1
    assert "changed 1 tensors that are frozen, such as model.language_model.norm.weight" in stopped.stderr
