"""The run folder: what is in it, that it can be shared, and that other programs can use it."""

import errno
import getpass
import json
import shutil

import pytest
import torch
from peft import PeftModel
from tiny import save_tiny
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlmtune.data.encode import encode
from vlmtune.data.images import open_image
from vlmtune.data.samples import read_samples
from vlmtune.engine.step import forward_loss
from vlmtune.models.build import build_tuned, family_of
from vlmtune.models.processor import load_processor
from vlmtune.plan.file import load_plan

FILES = {
    "config.yaml",
    "plan.json",
    "versions.json",
    "log.jsonl",
    "report.json",
    "report.html",
    "adapter/README.md",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "adapter/chat_template.jinja",
    "adapter/manifest.json",
    "adapter/processor_config.json",
    "adapter/tokenizer.json",
    "adapter/tokenizer_config.json",
}
CHECKPOINT = {
    "COMPLETE",
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "trainer_state.json",
}


@pytest.fixture
def done(project):
    """A finished run of a model beside the config, so that its name has no folder of this machine in it."""
    shutil.copytree(save_tiny("llava", project.root / "tiny-model"), project.root / "elsewhere")
    result = project.train("done", "model.name=tiny-model", "data.val_path=rows.jsonl")
    assert result.code == 0, result.stderr
    return project.run("done")


def files_of(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_files(done):
    checkpoints = {f"checkpoints/checkpoint-{step}/{name}" for step in (6, 8) for name in CHECKPOINT}
    assert files_of(done.path) == FILES | checkpoints


def test_files_of_full_tuning(project):
    assert project.train("full", "training.method=full", "training.max_steps=1").code == 0
    names = files_of(project.run("full").path)
    assert {"model/config.json", "model/model.safetensors", "model/processor_config.json"} <= names
    assert "checkpoints/checkpoint-1/trained.safetensors" in names
    assert not any(name.endswith(".bin") or name.startswith("adapter") for name in names)


def test_no_trace_of_this_machine(done, project):
    """Checkpoints hold numbers and names only, but people share whole folders."""
    assert project.run_cli("evaluate", done.path).code == 0
    assert done.evaluation.with_suffix(".html").read_text(encoding="utf-8").count('<img src="data:image/jpeg') == len(
        project.rows
    )
    looked_at = 0
    for path in done.path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for trace in (str(project.root), str(project.root.parent), "/home/", f"/{getpass.getuser()}/"):
                assert trace.encode() not in content, f"{path.name} holds {trace}"
            looked_at += 1
    assert looked_at >= 28


def test_an_evaluation_that_cannot_be_kept_is_told_all_the_same(done, project, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vlmtune.workflow.asked.gallery.write_gallery", full)
    told = project.run_cli("evaluate", done.path)
    assert told.code == 0 and told.stdout.startswith("rows             7\n") and "with its pictures" not in told.stdout
    assert f"the evaluation cannot be written into {done.path}: No space left on device" in told.stderr


def test_the_adapter_loads_with_peft_alone(done, project):
    plan = load_plan(done.plan)
    row = read_samples(project.root / "rows.jsonl").samples[0]
    images = [open_image(ref, None) for ref in row.images]
    inputs = encode(row, images, load_processor(plan), family_of(plan)).tensors
    base = AutoModelForImageTextToText.from_pretrained(project.root / "tiny-model", dtype=torch.float32)
    with torch.no_grad():
        without = base.eval()(**inputs).logits
        plain = PeftModel.from_pretrained(base, done.adapter).eval()(**inputs).logits
        ours = build_tuned(plan, str(done.adapter), quantized=False)(**inputs).logits
    assert torch.equal(plain, ours) and not torch.allclose(plain, without, atol=1e-3)
    config = json.loads((done.adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny-model"


def test_the_adapters_processor_ends_turns(done):
    processor = AutoProcessor.from_pretrained(done.adapter)
    messages = [{"role": role, "content": [{"type": "text", "text": "hi"}]} for role in ("user", "assistant")]
    assert processor.apply_chat_template(messages, tokenize=False) == "USER: hi ASSISTANT: hi</s>"


def test_the_adapters_processor_has_the_real_pixel_limits(project):
    save_tiny("qwen2_vl", project.root / "qwen")
    done = project.train("small", "model.name=qwen", "data.image_size=112", "training.max_steps=1")
    assert done.code == 0, done.stderr
    processor = AutoProcessor.from_pretrained(project.run("small").adapter)
    assert dict(processor.image_processor.size) == {"shortest_edge": 3136, "longest_edge": 12544}


def test_full_tuning_writes_a_model_that_loads(project):
    settings = ("training.method=full", "training.max_steps=2", "data.val_path=rows.jsonl")
    assert project.train("full", *settings).code == 0
    folder = project.run("full")
    plan = load_plan(folder.plan)
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(folder.model),
        AutoProcessor.from_pretrained(folder.model),
    )
    total, tokens = 0.0, 0
    for row in read_samples(project.root / "rows.jsonl").samples:
        encoded = encode(row, [open_image(ref, None) for ref in row.images], processor, family_of(plan))
        batch = {**encoded.tensors, "labels": encoded.labels}
        with torch.no_grad():
            total += forward_loss(model, batch, plan, num_items=1).item()
        tokens += int((encoded.labels != -100).sum())
    assert json.loads(folder.report_json.read_text())["eval_loss"] == pytest.approx(total / tokens, rel=1e-4)


def test_a_moved_run_still_finds_its_model(done, project):
    moved = shutil.move(project.root / "runs", project.root / "other")
    assert load_plan(project.root / "other" / "done" / "plan.json").model == str(project.root / "tiny-model")
    assert moved


def test_nothing_but_our_own_lines_is_printed(project):
    """In a process of its own: libraries speak once, at import, and warnings are shown once."""
    settings = (
        "training.max_steps=2",
        "data.val_path=rows.jsonl",
        "training.eval_steps=1",
        "training.lora.dropout=0.1",
    )
    quiet = project.train_elsewhere("", "quiet", *settings)
    assert (quiet.returncode, quiet.stderr) == (0, "")
    starts = [
        "2 steps of 2 rows",
        "warning: 2 steps teach",
        "warning: 7 of 7 rows in data.val_path are trained on too",
        "quiet: ",
        "the chat template is vlmtune's: ",
        "step 1/2",
        "evaluating rows: 0 of 7",
        "step 1/2",
        "step 2/2",
        "evaluating rows: 0 of 7",
        "step 2/2",
        "finished: ",
        "adapter, log and report",
        "share it: hf upload",
    ]
    lines = quiet.stdout.splitlines()
    assert len(lines) == len(starts)
    assert [line for line, start in zip(lines, starts, strict=True) if not line.startswith(start)] == []
