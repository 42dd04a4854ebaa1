"""A model by its hub id: downloaded, resumed, pinned, offline; and one message for each way the hub can fail."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from safetensors.torch import load_file

ID = "tiny-lab/llava-tiny"
HALF = 200_000
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="session")
def llava(models) -> Path:
    """The tiny LLaVA checkpoint with two layers of text; tests must not change it."""
    return models("llava").folder


@pytest.fixture
def published(llava, tmp_path) -> Path:
    """The tiny model as people publish them: with files that nobody needs."""
    folder = shutil.copytree(llava, tmp_path / "published")
    for name in ("pytorch_model.bin", "consolidated.safetensors", "model.gguf", "original/params.json", "cat.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not needed")
    return folder


@pytest.fixture
def sharded(llava, tmp_path) -> Path:
    """The tiny model in several files."""
    from transformers import AutoModelForImageTextToText

    folder = shutil.copytree(llava, tmp_path / "sharded", ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForImageTextToText.from_pretrained(llava).save_pretrained(folder, max_shard_size="300KB")
    assert len(list(folder.glob("*.safetensors"))) >= 3
    return folder


def train(project, *settings, **kwargs):
    return project.train("run", f"model.name={ID}", *settings, **kwargs)


def error_of(result) -> str:
    assert result.code == 1 and "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


def download(hub, **kwargs) -> Path:
    from vlmtune.hub.commits import pinned_commit
    from vlmtune.hub.download import checkpoint_folder

    return checkpoint_folder(ID, pinned_commit(ID, None), **kwargs)


DOWNLOAD = f"""
from vlmtune.hub.commits import pinned_commit
from vlmtune.hub.download import checkpoint_folder
print(checkpoint_folder({ID!r}, pinned_commit({ID!r}, None)))
"""


def test_a_hub_that_the_environment_names_is_asked(hub, project, published):
    """As users set it, for a process of its own: huggingface_hub reads these once, when it is imported."""
    commit = hub.push(ID, published)
    home = project.root / "home"
    named = {"HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    words = [sys.executable, "-c", DOWNLOAD]
    done = subprocess.run(words, env={**os.environ, **named}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1])
    assert folder.name == commit and folder.is_relative_to(home)
    assert (folder / "model.safetensors").read_bytes() == (published / "model.safetensors").read_bytes()


def test_only_the_needed_files_are_fetched_and_each_once(online, published):
    online.push(ID, published)
    folder = download(online)
    fetched = {path.rpartition("/")[2] for path in online.gets() if "/resolve/" in path}
    assert fetched == {file.name for file in folder.rglob("*") if file.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "processor_config.json"} <= fetched
    assert not fetched & {"pytorch_model.bin", "consolidated.safetensors", "model.gguf", "params.json", "cat.png"}
    assert len(online.gets("model.safetensors")) == 1
    assert load_file(folder / "model.safetensors").keys() == load_file(published / "model.safetensors").keys()
    online.forget()
    assert download(online) == folder
    assert [path for _, path, _ in online.requests] == [f"/api/models/{ID}"], "one question: where the branch is"


def test_what_is_packed_is_read_from_the_header_alone(online, llava, tmp_path, project):
    """Planned before the download; a model in a format that cannot be tuned is not downloaded at all."""
    from tiny.packed import change_config, save_packed

    from vlmtune.hub.source import open_model

    packed = save_packed(llava, tmp_path / "packed")
    online.push(ID, packed)
    found = open_model(ID, None, tmp_path).prequantised
    assert (found.quant_type, found.double_quant) == ("nf4", True) and len(found.packed) >= 25
    asked = [wanted for kind, path, wanted in online.requests if kind == "GET" and path.endswith("model.safetensors")]
    assert (
        asked == ["bytes=0-100000"] and online.sent["model.safetensors"] < (packed / "model.safetensors").stat().st_size
    )
    assert train(project, "training.max_steps=1").code == 0
    online.forget()
    change_config(packed, lambda config: config.update(quantization_config={"quant_method": "awq"}))
    online.push(ID, shutil.copytree(packed, tmp_path / "awq"))
    assert f"{ID} is already quantised (AWQ)" in error_of(project.train("other", f"model.name={ID}"))
    assert not online.gets("model.safetensors")


def test_a_shard_that_the_index_names_is_fetched_and_others_are_not(online, sharded):
    (sharded / "model-99999-of-99999.safetensors").write_bytes(b"of another upload")
    online.push(ID, sharded)
    folder = download(online)
    assert len(list(folder.glob("model-*.safetensors"))) == len(list(sharded.glob("model-*.safetensors"))) - 1


def test_a_connection_that_is_cut_goes_on_where_it_was(online, published):
    online.push(ID, published)
    online.cuts = [HALF]
    whole = (published / "model.safetensors").read_bytes()
    folder = download(online)
    assert (folder / "model.safetensors").read_bytes() == whole
    assert online.sent["model.safetensors"] == len(whole)
    asked = [wanted for kind, path, wanted in online.requests if kind == "GET" and path.endswith("model.safetensors")]
    assert asked == [None, f"bytes={HALF}-"]


def test_a_second_try_fetches_only_the_rest(online, sharded, project, capsys):
    """The connection is lost for good in the second shard; the command is run again later."""
    online.push(ID, sharded)
    shards = sorted(sharded.glob("*.safetensors"))
    sizes = [shard.stat().st_size for shard in shards]
    cut = sizes[1] // 2000 * 1000
    online.cuts = [sizes[0], cut, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    error = error_of(train(project))
    assert f"the connection to the hub was lost while downloading {ID}" in error
    assert "run the command again: it goes on from the" in error
    assert not project.run("run").path.exists(), "the name is free for the next try"

    online.cuts = []
    online.forget()
    done = train(project, "training.max_steps=1", flags=("--json",))
    assert done.code == 0
    assert any("of them are there" in line for line in done.stderr.splitlines()[:3])
    assert {shard.name: online.sent.get(shard.name, 0) for shard in shards} == {
        shard.name: rest for shard, rest in zip(shards, [0, sizes[1] - cut, *sizes[2:]], strict=True)
    }


def test_bytes_that_are_not_those_promised_are_not_kept(online, published):
    from vlmtune.errors import VlmtuneError

    online.push(ID, published)
    online.broken_bytes = True
    with pytest.raises(VlmtuneError, match="arrived damaged: its SHA-256 is not") as raised:
        download(online)
    assert raised.value.hint == "run the command again"
    online.broken_bytes = False
    assert (download(online) / "model.safetensors").read_bytes() == (published / "model.safetensors").read_bytes()


def test_nor_on_a_system_that_removes_no_open_file(windows, online, published):
    test_bytes_that_are_not_those_promised_are_not_kept(online, published)


def test_a_resumed_run_uses_its_own_files_after_the_branch_has_moved(online, project, published, llava, tmp_path):
    first = online.push(ID, published)
    assert train(project, "training.max_steps=3").code == 0
    text = project.run("run").plan.read_text()
    plan = json.loads(text)
    assert (plan["model"], plan["revision"], plan["model_revision"]) == (ID, first, None)
    assert str(tmp_path / "cache") not in text, "the run folder names no folder of this machine"
    project.run("run").report_json.unlink()
    other = shutil.copytree(llava, tmp_path / "other")
    assert online.push(ID, other) != first
    online.forget()
    resumed = train(project, "training.max_steps=3", resume=True)
    assert resumed.code == 0 and json.loads(project.run("run").plan.read_text())["revision"] == first
    assert online.requests == [], "nothing is asked"

    project.run("run").report_json.unlink()
    refused = error_of(train(project, "training.max_steps=3", "model.revision=main", resume=True))
    assert "was started differently" in refused and "revision" in refused


def test_rows_are_estimated_with_the_files_of_the_hub_even_of_a_model_of_the_catalogue(online, project, published):
    """The catalogue has configs only: rows need the tokenizer, which is where the model is."""
    known = "llava-hf/llava-1.5-7b-hf"
    online.push(known, published)
    done = project.run_cli("estimate-vram", project.config, "--set", f"model.name={known}", "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["worst_row"].startswith("rows.jsonl:")


def test_a_hub_out_of_reach(online, project, published):
    """With the cache everything goes on; without it there is one message."""
    from huggingface_hub import close_session

    online.push(ID, published)
    assert train(project, "training.max_steps=1").code == 0
    online.server.server_close()
    close_session()
    assert project.train("again", f"model.name={ID}", "training.max_steps=1").code == 0
    evaluated = project.run_cli("evaluate", project.run("run").path, "--data", project.root / "rows.jsonl")
    assert evaluated.code == 0, evaluated.stderr
    error = error_of(project.train("new", "model.name=tiny-lab/other"))
    assert "tiny-lab/other is not in the local cache and the hub cannot be reached" in error


def test_offline_mode_uses_the_cache(online, published, monkeypatch):
    online.push(ID, published)
    folder = download(online)
    online.forget()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert download(online) == folder and online.requests == []


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "accept it at {page}, then log in: hf auth login"),
        (403, "accept it at {page}"),
    ],
)
def test_a_gated_model(online, project, published, status, said):
    online.push(ID, published)
    online.status = status
    error = error_of(train(project))
    assert f"{ID} is gated: its licence must be accepted first" in error
    assert said.format(page=f"{online.address}/{ID}") in error


def test_a_name_that_the_hub_does_not_know(online, project):
    error = error_of(project.train("run", "model.name=Qwen/Qwen3-VL-4B-Instrct"))
    assert "neither a folder nor a hub model is called Qwen/Qwen3-VL-4B-Instrct" in error
    assert "known models with a similar name: Qwen/Qwen3-VL-4B-Instruct" in error and "hf auth login" in error


def test_a_revision_that_there_is_not(online, project, published):
    online.push(ID, published)
    assert f"{ID} has no revision v9" in error_of(train(project, "model.revision=v9"))


def test_a_hub_that_answers_with_errors(online, project, published):
    online.push(ID, published)
    online.status = 500
    assert "the hub cannot be reached" in error_of(train(project))


def test_weights_as_pickles_only(online, project, published):
    (published / "model.safetensors").unlink()
    online.push(ID, published)
    assert "has its weights in pytorch_model.bin, a pickle" in error_of(train(project))
    assert online.gets(".bin") == []


def test_no_room_on_the_disk_is_said_before_the_download(online, project, published, monkeypatch):
    online.push(ID, published)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(10**6, 10**6 - 1000, 1000))
    error = error_of(train(project))
    assert f"{ID} needs" in error and "1 kB are free" in error and "set HF_HOME to a folder on a larger disk" in error
    assert online.gets("model.safetensors") == []


def test_a_disk_that_fills_up_during_the_download(online, project, published, monkeypatch):
    online.push(ID, published)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    error = error_of(train(project))
    assert f"the disk is full: a file of {ID} could not be written" in error and "what has arrived is kept" in error


def test_a_terminal_sees_a_bar_and_a_program_one_line(online, published, capsys, monkeypatch):
    online.push(ID, published)
    size = f"{(published / 'model.safetensors').stat().st_size / 1e6:.0f} MB"
    download(online, live=False)
    assert capsys.readouterr().err == f"downloading {ID}: {size}\n"
