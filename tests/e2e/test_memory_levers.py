"""A run with a head in 4 bits and few layers that recompute, used as any other run."""

import json

from vlmtune.plan.file import load_plan


def test_a_run_with_a_4_bit_head_is_evaluated_asked_and_merged(project):
    settings = (
        "training.quantization.quantize_head=true",
        "hardware.checkpointed_layers=1",
        "data.val_path=rows.jsonl",
    )
    done = project.train("head", *settings)
    assert done.code == 0, done.stderr
    folder = project.run("head")
    plan = load_plan(folder.plan)
    assert (plan.unquantized, plan.checkpointed_layers) == ((), 1)
    losses = [json.loads(line)["loss"] for line in folder.log.read_text().splitlines()]
    assert losses[-1] < 0.95 * losses[0]
    assert project.run_cli("evaluate", folder.path).code == 0
    asked = project.run_cli("generate", folder.path, "--image", project.rows[0]["image"], "--prompt", "What colour?")
    assert asked.code == 0, asked.stderr
    merged = project.run_cli("merge", folder.path, "-o", "merged")
    assert merged.code == 0, merged.stderr


def test_a_resumed_run_ends_with_the_same_weights(project, assert_same_weights):
    settings = ("training.quantization.quantize_head=true", "hardware.checkpointed_layers=1")
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
