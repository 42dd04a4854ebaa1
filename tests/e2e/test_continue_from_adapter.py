"""A run that starts from an adapter, of vlmtune or of PEFT alone; what does not fit is refused before it loads."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlmtune.engine import train as engine_run
from vlmtune.plan.file import load_plan

NO_DECAY = ("training.lr_scheduler_type=constant", "training.warmup_ratio=0")


@pytest.fixture
def first(project):
    """The adapter of a finished run of one step."""
    project.train("first", "training.max_steps=1")
    return project.run("first").adapter


def start_of(project, monkeypatch, *settings):
    """The weights that a run starts with, by their names in files, and its folder."""
    from peft import get_peft_model_state_dict

    seen, real = {}, engine_run.build_running

    def look(plan, model, *args):
        seen.update({name: value.clone() for name, value in get_peft_model_state_dict(model).items()})
        return real(plan, model, *args)

    with monkeypatch.context() as patch:
        patch.setattr(engine_run, "build_running", look)
        done = project.train("second", "training.max_steps=1", *settings)
    assert done.code == 0, done.stderr
    return seen, done


@pytest.mark.parametrize("settings", [(), ("training.method=lora", "hardware.lean_lora=true")], ids=["qlora", "lean"])
def test_it_starts_with_the_very_numbers_of_the_adapter(project, monkeypatch, first, settings):
    found, _ = start_of(project, monkeypatch, "model.adapter=runs/first", *settings)
    expected = load_file(first / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    kept = (project.run("second").path / "config.yaml").read_text()
    assert (
        "adapter: ../first" in kept
        and json.loads(project.run("second").plan.read_text())["adapter"] == "../first/adapter"
    )


def test_a_run_folder_stands_for_its_adapter_and_learning_goes_on_from_there(project, first, weights):
    project.train("again", "training.max_steps=1", "model.adapter=runs/first", *NO_DECAY)
    project.train("other", "training.max_steps=1", "model.adapter=runs/first/adapter", *NO_DECAY)
    again, other, before = (weights(project.run(name)) for name in ("again", "other", "first"))
    assert all(torch.equal(again[name], other[name]) for name in again)
    assert any(not torch.equal(again[name], before[name]) for name in again)


@pytest.fixture(scope="session")
def llava(models) -> Path:
    """The tiny LLaVA checkpoint with two layers of text; tests must not change it."""
    return models("llava").folder


def test_an_adapter_of_peft_alone_on_fewer_layers_gives_its_rank_and_layers(project, monkeypatch, llava, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(llava)
    config = LoraConfig(
        r=2, lora_alpha=6, target_modules=r".*language_model.*\.(q_proj|v_proj)", init_lora_weights=False
    )
    get_peft_model(model, config).save_pretrained(tmp_path / "theirs")
    project.write_config({"model": {"name": str(llava), "adapter": "theirs"}, "data": {"train_path": "rows.jsonl"}})
    found, _ = start_of(project, monkeypatch)
    expected = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    plan = load_plan(project.run("second").plan)
    assert (plan.lora_rank, plan.lora_alpha) == (2, 6)
    notes = json.loads(project.run("second").report_json.read_text())["notes"]
    assert any("training.lora.rank = 2: so it is in the adapter" in note for note in notes)


def damaged(change):
    def apply(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    return apply


def without_some(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({n: t for n, t in tensors.items() if "layers.0" in n}, folder / "adapter_model.safetensors")


def of_wider_layers(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    wider = {name: t.repeat(1, 2) if "lora_A" in name else t for name, t in tensors.items()}
    save_file({name: t.contiguous() for name, t in wider.items()}, folder / "adapter_model.safetensors")


def of_other_names(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {n.replace("language_model", "decoder"): t for n, t in tensors.items()}, folder / "adapter_model.safetensors"
    )


def as_pickle(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


BAD = {
    "rank": (
        lambda folder: None,
        ("training.lora.rank=8", "training.lora.alpha=8"),
        "training.lora.rank: 8, and the adapter",
    ),
    "tower": (lambda folder: None, ("training.lora.vision_tower=true",), "is not on the vision tower"),
    "full": (lambda folder: None, ("training.method=full",), "model.adapter: method full has no adapters"),
    "dora": (damaged({"use_dora": True}), (), "is no plain LoRA"),
    "kind": (damaged({"peft_type": "IA3"}), (), "its peft_type is IA3"),
    "alpha": (damaged({"lora_alpha": 1e300}), (), "lora_alpha"),
    "layers": (without_some, (), "of the"),
    "shape": (of_wider_layers, (), "was trained on another model"),
    "names": (of_other_names, (), "which adapters of this model are not"),
    "pickle": (as_pickle, (), "a pickle: opening one can run any program"),
    "absent": (shutil.rmtree, (), "there is no folder"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_before_the_model_loads(project, monkeypatch, tmp_path, saved_adapter, name):
    change, settings, said = BAD[name]
    folder = shutil.copytree(saved_adapter, tmp_path / "bad")
    (folder / "manifest.json").unlink()
    change(folder)
    monkeypatch.setattr("vlmtune.models.build.load_base", None)
    refused = project.train("bad", "model.adapter=bad", *settings)
    assert refused.code == 1 and said in refused.stderr, refused.stderr
    assert "Traceback" not in refused.stderr and not project.run("bad").path.exists()


@pytest.fixture(scope="module")
def saved_adapter(tmp_path_factory, llava):
    """An adapter as a run leaves it."""
    from tiny.rows import tiny_plan

    from vlmtune.engine.checkpoints import save_adapter
    from vlmtune.models.build import build_model
    from vlmtune.runs.manifest import write_manifest

    folder = tmp_path_factory.mktemp("saved") / "adapter"
    save_adapter(build_model(tiny_plan(llava, training={"lora": {"rank": 4, "alpha": 8}})), folder)
    write_manifest(folder)
    return folder


def test_a_run_goes_on_only_with_the_adapter_that_it_started_from(project, first, weights):
    project.train_killed("run", "model.adapter=runs/first")
    other = shutil.copytree(first, project.root / "moved")
    tensors = weights(project.run("first"))
    assert project.train("run", "model.adapter=moved", resume=True).code == 0
    project.run("run").report_json.unlink()
    save_file({name: value + 1 for name, value in tensors.items()}, other / "adapter_model.safetensors")
    (other / "manifest.json").unlink()
    refused = project.train("run", "model.adapter=moved", resume=True)
    assert refused.code == 1 and "adapter_sha256" in refused.stderr
