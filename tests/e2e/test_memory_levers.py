"""Runs with levers of the model pulled, used as any other run."""

import json
from pathlib import Path

import pytest
import yaml
from tiny import save_tiny

from vlmtune.plan.file import load_plan


@pytest.fixture(scope="session")
def llava(models) -> Path:
    """The tiny LLaVA checkpoint with two layers of text; tests must not change it."""
    return models("llava").folder


@pytest.fixture
def deep(project, tmp_path):
    """The project with a language model of five layers."""
    values = yaml.safe_load(project.config.read_text())
    values["model"]["name"] = str(save_tiny("llava", tmp_path / "deep", layers=5))
    project.write_config(values)
    return project


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
    project.train_killed("cut", *settings)
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


def test_a_run_with_layers_in_main_memory_is_the_run_without(deep, assert_same_weights):
    checked = ("data.val_path=rows.jsonl", "training.eval_steps=3")
    assert deep.train("plain", *checked).code == 0
    streamed = deep.train("streamed", *checked, "hardware.streamed_layers=4")
    assert streamed.code == 0, streamed.stderr
    plain, folder = deep.run("plain"), deep.run("streamed")
    assert load_plan(folder.plan).streamed_layers == 4
    assert_same_weights(plain, folder)
    losses = [
        [(line["loss"], line["eval_loss"]) for line in map(json.loads, run.log.open())] for run in (plain, folder)
    ]
    assert losses[0] == losses[1] and any(held_out for _, held_out in losses[0])
    answers = [deep.run_cli("evaluate", run.path, "--json") for run in (plain, folder)]
    assert [done.code for done in answers] == [0, 0]
    assert json.loads(answers[0].stdout)["answers"] == json.loads(answers[1].stdout)["answers"]
    assert deep.run_cli("merge", folder.path, "-o", "merged").code == 0


def test_other_layers_may_lie_in_main_memory_when_a_run_goes_on(deep, assert_same_weights):
    deep.train("whole")
    deep.train_killed("cut", "hardware.streamed_layers=3")
    resumed = deep.train("cut", "hardware.streamed_layers=5", resume=True)
    assert resumed.code == 0, resumed.stderr
    assert_same_weights(deep.run("whole"), deep.run("cut"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["hardware.streamed_layers=6"], "6 are wanted, but the language model of"),
        (["hardware.streamed_layers=2"], "2 saves nothing, because 2 of the streamed layers are on the card"),
        (["hardware.streamed_layers=4", "training.method=lora"], "method lora has no 4-bit layers to stream"),
        (["hardware.streamed_layers=4", "training.method=full"], "method full has no 4-bit layers to stream"),
    ],
)
def test_what_cannot_be_streamed_is_refused_before_anything_is_loaded(settings, said, deep):
    refused = deep.train("refused", *settings)
    assert refused.code == 1 and said in " ".join(refused.stderr.split())
    assert not deep.run("refused").path.exists()


def test_a_run_with_embeddings_in_main_memory_is_as_any_other(project, assert_same_weights):
    """Cut in the middle it goes on with them on the card, and ends with the same weights to the bit."""
    away, here = "hardware.offload_embeddings=true", "hardware.offload_embeddings=false"
    project.train("whole", here)
    done = project.train("away", away)
    assert done.code == 0, done.stderr
    assert load_plan(project.run("away").plan).offload_embeddings
    assert_same_weights(project.run("whole"), project.run("away"))
    project.train_killed("cut", away)
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
