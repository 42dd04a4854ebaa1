"""A base whose files are in 4 bits already, used as any other model; bases in other formats, refused in one line."""

import json

import pytest
import yaml
from tiny.packed import change_config, save_packed

from vlmtune.plan.file import load_plan


@pytest.fixture
def packed(project, llava):
    """The project's model in 4 bits, which its config now names."""
    folder = save_packed(
        llava, project.root / "packed", skip=("lm_head", "model.vision_tower", "model.multi_modal_projector")
    )
    values = yaml.safe_load(project.config.read_text())
    project.write_config({**values, "model": {"name": "packed"}})
    return folder


def test_a_run_is_trained_evaluated_asked_and_merged(project, packed):
    done = project.train("run", "data.val_path=rows.jsonl")
    assert done.code == 0, done.stderr
    folder = project.run("run")
    assert load_plan(folder.plan).prequantised
    losses = [json.loads(line)["loss"] for line in folder.log.read_text().splitlines()]
    assert losses[-1] < 0.95 * losses[0]
    evaluated = project.run_cli("evaluate", folder.path, "--json")
    assert evaluated.code == 0, evaluated.stderr
    asked = project.run_cli("generate", folder.path, "--image", project.rows[0]["image"], "--prompt", "What colour?")
    assert asked.code == 0, asked.stderr
    merged = project.run_cli("merge", folder.path, "-o", "merged")
    assert merged.code == 0, merged.stderr
    assert "the base's files are in 4 bits" in merged.stdout
    assert "quantization_config" not in json.loads((project.root / "merged" / "config.json").read_text())
    again = project.train("again", "model.name=merged", "training.method=lora", "training.max_steps=1")
    assert again.code == 0, again.stderr


def test_it_ends_with_the_weights_of_the_same_run_on_the_model_in_16_bits(project, packed, llava, assert_same_weights):
    assert project.train("packed-run").code == 0
    tower = "training.quantization.quantize_vision_tower=false"
    assert project.train("quantised-run", f"model.name={llava}", tower).code == 0
    assert_same_weights(project.run("packed-run"), project.run("quantised-run"))


EXACT = ("data.cache_features=true", "hardware.offload_embeddings=true", "hardware.offload_activations=true")


@pytest.mark.parametrize("source", ["packed", "kept"])
def test_beside_all_that_leaves_the_card_it_learns_the_same(source, project, packed, llava, assert_same_weights):
    words = ["training.quantization.quantize_head=8bit"]
    words += [f"model.name={llava}", "model.cache_quantized=true"] if source == "kept" else []
    assert project.train("all-there", *words).code == 0
    for name in ("away", "away-again"):  # the second finds features, and the base that was kept without its tower
        done = project.train(name, *words, *EXACT)
        assert done.code == 0, done.stderr
        assert_same_weights(project.run("all-there"), project.run(name))
    assert ("the base in 4 bits comes from" in done.stdout) == (source == "kept")
    evaluated = project.run_cli("evaluate", project.run("away").path, "--data", project.root / "rows.jsonl", "--json")
    assert evaluated.code == 0, evaluated.stderr


def test_a_resumed_run_ends_with_the_same_weights(project, packed, assert_same_weights):
    project.train("whole")
    project.train_killed("cut")
    assert project.train("cut", resume=True).code == 0
    assert_same_weights(project.run("whole"), project.run("cut"))


def test_it_is_estimated_as_what_it_is(project, packed, llava):
    def estimate(*words):
        done = project.run_cli("estimate-vram", project.config, "--gpu", "8gb", "--fast", "--json", *words)
        assert done.code == 0, done.stderr
        report = json.loads(done.stdout)
        return report, {phase["name"]: phase for phase in report["phases"]}["load"]

    tower = ("--set", "training.quantization.quantize_vision_tower=false")
    (files, load), (quantised, load_quantised) = estimate(), estimate("--set", f"model.name={llava}", *tower)
    assert abs(files["peak_allocated_bytes"] - quantised["peak_allocated_bytes"]) <= 1024, "8-bit codes, kept once more"
    assert load["peak_allocated_bytes"] < load_quantised["peak_allocated_bytes"]


def test_a_wish_that_contradicts_is_refused_with_its_line(project, packed):
    values = yaml.safe_load(project.config.read_text())
    values["training"]["quantization"] = {"bnb_4bit_quant_type": "fp4"}
    project.write_config(values)
    for done in (project.train("run"), project.run_cli("estimate-vram", project.config, "--gpu", "8gb")):
        assert done.code == 1
        said = " ".join(done.stderr.split())
        assert "training.quantization.bnb_4bit_quant_type: fp4, and the files of packed" in said
        assert "in 4 bits already, have nf4" in said and "run.yaml:" in said


def test_another_format_is_refused_before_anything_is_read(project, packed):
    change_config(packed, lambda config: config.update(quantization_config={"quant_method": "gptq", "bits": 4}))
    (packed / "model.safetensors").unlink()
    done = project.train("run")
    assert done.code == 1 and "is already quantised (GPTQ)" in " ".join(done.stderr.split())
