"""Pictures and boxes as people have them, through the commands."""

import json
import unicodedata

import numpy as np
import pytest
from PIL import Image
from tiny import save_tiny

from vlmtune.plan.file import load_plan

SHORT = ("training.num_epochs=1", "training.max_steps=2")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """The tiny Qwen2.5-VL checkpoint; tests must not change it."""
    return save_tiny("qwen2_5_vl", tmp_path_factory.mktemp("models") / "qwen2_5_vl")


def scan(path, highest: int) -> None:
    levels = np.linspace(0, highest, 64 * 48).reshape(48, 64).astype(np.uint16)
    Image.fromarray(levels).save(path)


def test_pictures_as_they_come_are_learned_and_told_of(project):
    scan(project.root / "scan.png", 4032)
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue")]
    frames[0].save(project.root / "moving.gif", save_all=True, append_images=frames[1:])
    Image.new("RGBA", (64, 48), (0, 0, 0, 0)).save(project.root / "clear.png")
    Image.new("CMYK", (64, 48), (0, 255, 255, 0)).save(project.root / unicodedata.normalize("NFD", "café.jpg"))
    Image.new("RGB", (64, 48), "red").save(project.root / "new.avif")
    names = ("scan.png", "moving.gif", "clear.png", "caf%C3%A9.jpg", "new.avif", f"file://{project.root}/scan.png")
    project.write_rows([{"image": name, "question": "What is this?", "answer": "red"} for name in names])
    shown = project.train("pictures", *SHORT)
    assert shown.code == 0, shown.stderr
    notes = "\n".join(json.loads(project.run("pictures").report_json.read_text())["notes"])
    for told in (
        "1 image with more than 8 bits a colour",
        "1 image with several frames or pages: the first is used",
        "1 image with a name written in another way",
    ):
        assert told in notes


@pytest.mark.parametrize("cached", ["false", "true"])
def test_boxes_are_learned_and_evaluated_in_the_models_convention(project, qwen, cached):
    Image.new("RGB", (640, 480), "red").save(project.root / "cat.png")
    row = {
        "image": "cat.png",
        "messages": [
            {"role": "user", "content": "<image>find <ref-object>"},
            {"role": "assistant", "content": '{"bbox_2d": <bbox>}'},
        ],
        "objects": {"ref": ["the cat"], "bbox": [[64, 240, 320, 480]]},
    }
    project.write_rows([row])
    settings = (f"model.name={qwen}", "data.val_path=rows.jsonl", "data.image_size=112")
    shown = project.train("boxes", *SHORT, *settings, f"data.cache_features={cached}")
    assert shown.code == 0, shown.stderr
    assert (
        "boxes of 1 row are written as [x1, y1, x2, y2] in pixels of the picture as the model sees it" in shown.stdout
    )
    assert load_plan(project.run("boxes").plan).boxes == "qwen2_5_vl"
    evaluated = project.run_cli("evaluate", project.run("boxes").path, "--json")
    assert evaluated.code == 0, evaluated.stderr
    [answer] = json.loads(evaluated.stdout)["answers"]
    assert (answer["question"], answer["expected"]) == ("find the cat", ['{"bbox_2d": [11, 42, 56, 84]}'])


def test_boxes_in_bare_pixels_of_a_picture_that_is_shrunk_are_warned_of(project, qwen):
    Image.new("RGB", (1600, 1200), "red").save(project.root / "big.png")
    answer = '{"bbox_2d": [1200, 900, 1500, 1100], "label": "cat"}'
    project.write_rows([{"image": "big.png", "question": "Find the cat.", "answer": answer}])
    shown = project.run_cli("validate", project.config, "--set", "data.image_size=448")
    named = "(rows.jsonl:1: [1200, 900, 1500, 1100] on 1600×1200)"
    assert "the model reads numbers on one of 448×336" in shown.stdout and named in shown.stdout
    told = json.loads(project.run_cli("validate", project.config, "--set", "data.image_size=448", "--json").stdout)
    assert any(named in note for note in told["data"]["train_path"]["notes"])
    begun = project.train("bare", *SHORT, f"model.name={qwen}", flags=("--dry-run",))
    assert named in begun.stdout


def test_what_a_caption_lacks_is_said(project):
    project.write_rows([{"file_name": "red0.png", "text": "a red rectangle"}], "metadata.jsonl")
    shown = project.run_cli("validate", project.config, "--set", "data.train_path=metadata.jsonl")
    assert "metadata.jsonl:1: text has no question beside it" in shown.stderr
    assert 'data.prompt: "Describe the picture."' in shown.stderr and "a column question" in shown.stderr
