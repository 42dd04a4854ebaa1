"""A run with a head in fewer bits and few layers that recompute, used as any other run."""

import json

import pytest

from vlmtune.plan.file import load_plan


@pytest.mark.parametrize(("wish", "unquantized"), [("true", ()), ("8bit", ("lm_head",))])
def test_a_run_with_a_head_in_fewer_bits_is_evaluated_asked_and_merged(wish, unquantized, project):
    settings = (
        f"training.quantization.quantize_head={wish}",
        "hardware.checkpointed_layers=1",
        "data.val_path=rows.jsonl",
    )
    done = project.train("head", *settings)
    assert done.code == 0, done.stderr
    folder = project.run("head")
    plan = load_plan(folder.plan)
    assert (plan.unquantized, plan.head_8bit, plan.checkpointed_layers) == (unquantized, wish == "8bit", 1)
    losses = [json.loads(line)["loss"] for line in folder.log.read_text().splitlines()]
    assert losses[-1] < 0.95 * losses[0]
    assert project.run_cli("evaluate", folder.path).code == 0
    asked = project.run_cli("generate", folder.path, "--image", project.rows[0]["image"], "--prompt", "What colour?")
    assert asked.code == 0, asked.stderr
    merged = project.run_cli("merge", folder.path, "-o", "merged")
    assert merged.code == 0, merged.stderr


@pytest.mark.parametrize("wish", ["true", "8bit"])
def test_a_resumed_run_ends_with_the_same_weights(wish, project, assert_same_weights):
    settings = (f"training.quantization.quantize_head={wish}", "hardware.checkpointed_layers=1")
    project.train("whole", *settings)
    stop_after_step_4 = (
        "from vlmtune.engine import callbacks; import os\n"
        "real = callbacks.Recorder.on_step_end\n"
        "def stop(self, args, state, control, **kwargs):\n"
        "    real(self, args, state, control, **kwargs)\n"
        "    if state.global_step == 4: os._exit(9)\n"
        "callbacks.Recorder.on_step_end = stop"
    )
    assert project.train_elsewhere(stop_after_step_4, "cut", *settings).returncode == 9
    assert project.train("cut", *settings, resume=True).code == 0
    assert_same_weights(project.run("whole"), project.run("cut"))


def test_a_run_does_not_go_on_with_a_head_in_other_bits(project):
    assert project.train("run", "training.max_steps=4").code == 0
    done = project.train("run", "training.max_steps=6", "training.quantization.quantize_head=8bit", resume=True)
    assert done.code == 1 and "head_8bit: False -> True" in " ".join(done.stderr.split())


def test_what_the_head_may_be_is_said(project):
    done = project.train("run", "training.quantization.quantize_head=8")
    assert done.code == 1
    said = " ".join(done.stderr.split())
    assert "training.quantization.quantize_head must be one of false, true, 8bit, not 8" in said
