"""Runs with levers of the model pulled, used as any other run."""

import json

from vlmtune.plan.file import load_plan

STOP_AFTER_STEP_4 = (
    "from vlmtune.engine import callbacks; import os\n"
    "real = callbacks.Recorder.on_step_end\n"
    "def stop(self, args, state, control, **kwargs):\n"
    "    real(self, args, state, control, **kwargs)\n"
    "    if state.global_step == 4: os._exit(9)\n"
    "callbacks.Recorder.on_step_end = stop"
)


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
    assert project.train_elsewhere(STOP_AFTER_STEP_4, "cut", *settings).returncode == 9
    assert project.train("cut", *settings, resume=True).code == 0
    assert_same_weights(project.run("whole"), project.run("cut"))


def test_a_run_with_embeddings_in_main_memory_is_as_any_other(project, assert_same_weights):
    """Cut in the middle it goes on with them on the card, and ends with the same weights to the bit."""
    away, here = "hardware.offload_embeddings=true", "hardware.offload_embeddings=false"
    project.train("whole", here)
    done = project.train("away", away)
    assert done.code == 0, done.stderr
    assert load_plan(project.run("away").plan).offload_embeddings
    assert_same_weights(project.run("whole"), project.run("away"))
    assert project.train_elsewhere(STOP_AFTER_STEP_4, "cut", away).returncode == 9
    assert project.train("cut", here, resume=True).code == 0
    assert_same_weights(project.run("whole"), project.run("cut"))
    folder = project.run("away").path
    assert project.run_cli("evaluate", folder, "--data", "rows.jsonl").code == 0
    asked = [
        project.run_cli("generate", path, "--image", project.rows[0]["image"], "--prompt", "What colour?")
        for path in (folder, project.run("whole").path)
    ]
    assert asked[0].code == 0 and asked[0].stdout == asked[1].stdout
    merged = project.run_cli("merge", folder, "-o", "merged")
    assert merged.code == 0, merged.stderr
