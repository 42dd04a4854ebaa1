"""A project folder as a user has it: a tiny model, a few rows with pictures, one config; `vlmtune` runs in it."""

import _socket
import gc
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kills import killed_after_step
from loopback_hub import Hub, serve
from tiny import save_tiny
from tiny.rows import colour_rows
from windows import act_like_windows

from vlmtune.runs.folder import RunFolder

NUM_ROWS = 7
TRAINING = {
    "num_epochs": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 0.01,
    "save_steps": 3,
    "lora": {"rank": 4, "alpha": 8},
}
STRAIGHT: dict[tuple, Path] = {}
"""Finished runs, by what they were trained on."""
STEPS = 8  # two epochs of four steps


class Project:
    """A folder with model, rows and config, and the commands run in it."""

    def __init__(self, root: Path, model: Path, run_cli) -> None:
        self.root, self.model = root, model
        self.config = root / "run.yaml"
        self.rows = [
            {"image": Path(row.images[0].path).name, "question": row.turns[0].text, "answer": row.answer}
            for row in colour_rows(root, NUM_ROWS)
        ]
        self.run_cli = run_cli
        self.write_rows(self.rows)
        self.write_config({"model": {"name": str(model)}, "data": {"train_path": "rows.jsonl"}, "training": TRAINING})

    def write_rows(self, rows: list[dict], name: str = "rows.jsonl") -> None:
        """Write a data file."""
        (self.root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write_config(self, values: dict) -> None:
        """Write the config file."""
        self.config.write_text(yaml.safe_dump(values))

    def train(self, name: str, *settings: str, resume: bool = False, flags: tuple[str, ...] = ()):
        """Run `vlmtune train` in this process; `settings` are `key=value`."""
        result = self.run_cli(*self._arguments(name, settings, resume), *flags)
        if any(setting.startswith("hardware.num_workers") for setting in settings):
            _end_workers()
        return result

    def straight(self, *settings: str) -> None:
        """Let there be a run "straight" that nothing disturbs; with the same rows and settings it is trained once."""
        key = (self.config.read_text(), (self.root / "rows.jsonl").read_text(), settings)
        if key not in STRAIGHT:
            assert self.train("straight", *settings).code == 0
            STRAIGHT[key] = shutil.copytree(self.run("straight").path, self.model.parent / f"straight-{len(STRAIGHT)}")
        else:
            shutil.copytree(STRAIGHT[key], self.run("straight").path)

    def train_killed(self, name: str, *settings: str) -> None:
        """Run `vlmtune train` in this process, killed after its fourth step: a checkpoint of the third is left."""
        with killed_after_step(4):
            self.train(name, *settings)

    def train_elsewhere(
        self, driver: str, name: str, *settings: str, resume: bool = False
    ) -> subprocess.CompletedProcess:
        """Run `vlmtune train` in another process after the Python lines of `driver`, which change it."""
        words = [str(word) for word in self._arguments(name, settings, resume)]
        code = f"{driver}\nfrom vlmtune.cli import main\nmain({words!r})"
        return subprocess.run(
            [sys.executable, "-c", code], cwd=self.root, env=os.environ, capture_output=True, text=True, timeout=120
        )

    def run(self, name: str) -> RunFolder:
        """The run folder of a name."""
        return RunFolder(self.root / "runs" / name)

    def _arguments(self, name: str, settings: tuple[str, ...], resume: bool) -> list:
        words = [word for setting in (f"experiment_name={name}", *settings) for word in ("--set", setting)]
        return ["train", self.config, *words, *(["--resume"] if resume else [])]


def _end_workers() -> None:
    """End the reading processes of a run. A command ends them as it exits; the garbage collector waits 5 s for each."""
    from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

    for found in gc.get_objects():
        if type(found) is _MultiProcessingDataLoaderIter:
            found._shutdown_workers()


@pytest.fixture(scope="session")
def llava(tmp_path_factory) -> Path:
    """The tiny LLaVA checkpoint, with one layer of text; tests must not change it."""
    return save_tiny("llava", tmp_path_factory.mktemp("models") / "llava", layers=1)


@pytest.fixture
def project(tmp_path, llava, run_cli, monkeypatch) -> Project:
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path, llava, run_cli)


@pytest.fixture(scope="module")
def folder_of_estimates(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("estimates")


@pytest.fixture
def kept_estimates(folder_of_estimates, monkeypatch) -> None:
    """Let the tests of a module use estimates that others of it have made: the same plan is simulated once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder_of_estimates))


@pytest.fixture
def windows(tmp_path, monkeypatch) -> Path:
    """A folder on another drive than everything else, on a file system that refuses what Windows refuses."""
    drive = tmp_path / "drive-d"
    drive.mkdir()
    act_like_windows(monkeypatch, drive)
    return drive


@pytest.fixture
def weights():
    """A function that returns the tensors that a run has trained."""
    from safetensors.torch import load_file

    def read(folder: RunFolder) -> dict:
        target = folder.adapter / "adapter_model.safetensors"
        return load_file(target if target.exists() else folder.model / "model.safetensors")

    return read


@pytest.fixture
def assert_same_weights(weights):
    """A function that asserts that two runs ended with the same weights, bit for bit."""
    import torch

    def check(one: RunFolder, other: RunFolder) -> None:
        expected, found = weights(one), weights(other)
        assert expected.keys() == found.keys() and len(expected) >= 10
        assert [name for name in expected if not torch.equal(expected[name], found[name])] == []

    return check


@pytest.fixture
def hub():
    """A hub on the loopback, not yet the one that this process asks."""
    hub = Hub()
    server = serve(hub)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    hub.server = server
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def online(hub, monkeypatch, tmp_path):
    """This process asks that hub, over the loopback and nothing else, with an empty cache."""
    from huggingface_hub import close_session, constants

    def loopback_only(self, address):
        if self.family != socket.AF_UNIX and address[0] != "127.0.0.1":
            raise PermissionError(f"tests use the loopback only: {address!r}")
        return _socket.socket.connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", loopback_only)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what has arrived of a chunk is lost in a cut
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    yield hub
    close_session()
