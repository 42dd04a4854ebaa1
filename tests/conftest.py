"""What every test stands on: no network, no colour, 80 columns, and the CLI as a function."""

import os
import socket
from dataclasses import dataclass
from functools import cache

import pytest

# Set before any test module is imported: rich and transformers read these once.
os.environ.update(
    OMP_NUM_THREADS="1",  # tiny models: threads that wait for each other cost a hundred times more than they gain
    COLUMNS="80",
    NO_COLOR="1",
    TERM="dumb",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TRANSFORMERS_VERBOSITY="error",
)
for name in ("FORCE_COLOR", "PY_COLORS", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "GITHUB_ACTIONS"):
    os.environ.pop(name, None)

REAL_CONNECT, REAL_CONNECT_EX = socket.socket.connect, socket.socket.connect_ex


def _refuse(real):
    def connect(self, address):
        if self.family != socket.AF_UNIX:
            raise PermissionError(f"tests do not use the network: {address!r}")
        return real(self, address)

    return connect


socket.socket.connect = _refuse(REAL_CONNECT)
socket.socket.connect_ex = _refuse(REAL_CONNECT_EX)


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch, tmp_path_factory):
    """Give each test a cache folder of its own: no test meets an estimate that another one made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache", numbered=True)))


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A function that returns a tiny model by its name and the layers of its text model; each is made once.

    Tests must not change its files.
    """
    from tiny.rows import TinyModel

    folder = tmp_path_factory.mktemp("models")
    return cache(lambda name, layers=2: TinyModel(name, folder, layers))


@dataclass(frozen=True)
class CliResult:
    """What a finished command left behind."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def run_cli(capsys):
    """A function that runs `vlmtune ARGS…` in this process and returns its `CliResult`; a bug raises through it."""

    def run(*args: object) -> CliResult:
        from vlmtune.cli import main

        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main([str(arg) for arg in args])
        output = capsys.readouterr()
        return CliResult(exit_info.value.code or 0, output.out, output.err)

    return run
