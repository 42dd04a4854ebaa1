"""What is wrong with a model or config is said in one message, before anything is loaded."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file


@pytest.fixture
def model(project, llava):
    """A copy of the model, to be damaged; the config names it."""
    folder = shutil.copytree(llava, project.root / "model")
    return folder


def fails(project, monkeypatch, *settings, builds=False):
    """The error of a run that must end before a model is built."""
    if not builds:
        monkeypatch.setattr("vlmtune.models.build.load_base", None)
    failed = project.train("run", "model.name=model", *settings)
    assert failed.code == 1 and failed.stderr.startswith("error: "), failed.stderr
    assert "Traceback" not in failed.stderr and failed.stderr.count("error:") == 1
    assert len(failed.stderr.splitlines()) <= 2
    assert not project.run("run").path.exists(), "the name is free for the next try"
    return failed.stderr


def test_model_folder_missing(project, monkeypatch):
    error = fails(project, monkeypatch)
    assert f"there is no folder {project.root / 'model'}" in error and "hub id" in error


def test_unknown_model_type(project, monkeypatch, model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "qwen4_vl"}))
    error = fails(project, monkeypatch)
    assert "model: model_type 'qwen4_vl' belongs to no known family" in error
    assert "the installed transformers knows no vision-language model of this type; nearest: qwen3_vl" in error


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "is not JSON"), ("[]", "is not a JSON object"), ("{}", "model_type"), ('{"model_type": 3}', "model_type")],
)
def test_broken_config_json(project, monkeypatch, model, text, said):
    (model / "config.json").write_text(text)
    assert said in fails(project, monkeypatch)


def test_no_config_json(project, monkeypatch, model):
    (model / "config.json").unlink()
    assert "has no config.json" in fails(project, monkeypatch)


def test_a_pickle_is_refused_with_the_way_out(project, monkeypatch, model):
    monkeypatch.setattr("vlmtune.engine.train.load_processor", None)
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    error = fails(project, monkeypatch)
    assert "its weights in pytorch_model.bin, a pickle" in error
    assert "convert it to safetensors, which runs nothing of it: python -m vlmtune.models.to_safetensors" in error


def test_no_weights_at_all(project, monkeypatch, model):
    (model / "model.safetensors").unlink()
    assert "has no weights: neither model.safetensors nor model.safetensors.index.json" in fails(project, monkeypatch)


def test_a_tensor_missing_is_not_made_up(project, monkeypatch, model):
    tensors = load_file(model / "model.safetensors")
    del tensors[sorted(tensors)[5]]
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    error = fails(project, monkeypatch, builds=True)
    assert "lack 1 tensors" in error and "download the model again" in error


@pytest.mark.parametrize("method", ["qlora", "lora"])
def test_a_tensor_of_another_shape(project, monkeypatch, model, method):
    tensors = load_file(model / "model.safetensors")
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    tensors[name] = tensors[name][:, :32].contiguous()
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    error = fails(project, monkeypatch, f"training.method={method}", builds=True)
    assert "q_proj.weight" in error


def test_a_cut_off_file(project, monkeypatch, model):
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    error = fails(project, monkeypatch, builds=True)
    assert "model.safetensors" in error or "cannot be loaded" in error


@pytest.mark.parametrize("file", ["tokenizer.json", "processor_config.json"])
def test_processor_files_missing(project, monkeypatch, model, file):
    (model / file).unlink()
    error = fails(project, monkeypatch)
    assert "the processor of" in error and "preprocessor files" in error


def test_a_hub_model_without_a_connection(project, monkeypatch):
    failed = project.train("run", "model.name=org/model")
    assert failed.code == 1 and "org/model is not in the local cache and the hub cannot be reached" in failed.stderr


def test_a_template_that_never_ends_an_answer(project, monkeypatch, tmp_path_factory):
    from tiny import save_tiny

    save_tiny("qwen2_vl", project.root / "model")
    (project.root / "model" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}"
        "{{ '<|image_pad|>' if p['type'] == 'image' else p['text'] }}{% endfor %}{% endfor %}"
    )
    assert "puts no end token after an answer" in fails(project, monkeypatch)


def test_a_run_folder_that_is_none_is_not_resumed(project):
    folder = project.run("run")
    folder.path.mkdir(parents=True)
    (folder.path / "mine.txt").write_text("keep")
    for resume in (False, True):
        refused = project.train("run", resume=resume)
        assert refused.code == 1 and "runs/run" in refused.stderr
    assert (folder.path / "mine.txt").read_text() == "keep"


def test_a_damaged_plan_is_said_to_be_damaged(project):
    project.train("run", "training.max_steps=1")
    for text in ("", "{", "[]", '{"seed": 1}'):
        project.run("run").plan.write_text(text)
        refused = project.train("run", "training.max_steps=1", resume=True)
        assert refused.code == 1 and "plan.json" in refused.stderr
